"""A stand-in for `pvesm free`."""

from __future__ import annotations

import sys

from pvesh import Node, complain


def main(argv: list[str]) -> int:
    match argv:
        case ["free", volid]:
            node = Node()
            storage = volid.partition(":")[0]
            path = f"/nodes/{node.name}/storage/{storage}/content/{volid}"
            answer = node.call("DELETE", path, {})
            return 0 if answer["status"] == 200 else complain(answer, "pvesm free <volume>")
    print(f"ERROR: unknown command 'pvesm {' '.join(argv)}'", file=sys.stderr)
    return 255

"""A stand-in for `qm`: `unlock`, `destroy`, `set`, `disk import`, `guest exec`, `guest exec-status` and
`guest cmd`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pvesh import Node, complain, options, pretty

EXEC = "qm guest exec <vmid> [<extra-args>] [OPTIONS]"


def main(argv: list[str]) -> int:
    match argv:
        case ["unlock", vmid]:
            return unlock(vmid)
        case ["destroy", vmid, *words]:
            return destroy(vmid, words)
        case ["set", vmid, *words]:
            return configure(vmid, words)
        case ["disk", "import", vmid, source, storage, *words]:
            return disk_import(vmid, Path(source), storage, words)
        case ["guest", "exec", vmid, *words]:
            return guest_exec(vmid, words)
        case ["guest", "exec-status", vmid, pid]:
            return tell(
                agent(Node(), "GET", vmid, "exec-status", {"pid": pid}),
                "qm guest exec-status <vmid> <pid>",
            )
        case ["guest", "cmd", vmid, command]:
            method = "GET" if command.startswith("get-") else "POST"
            if command in ("info", "network-get-interfaces"):
                method = "GET"
            return tell(agent(Node(), method, vmid, command, {}), "qm guest cmd <vmid> <command>")
    print(f"ERROR: unknown command 'qm {' '.join(argv)}'", file=sys.stderr)
    return 255


def unlock(vmid: str) -> int:
    """Root's own way: takes the `lock` line out of the config, whatever holds it."""
    node = Node()
    path = f"/nodes/{node.name}/qemu/{vmid}/config"
    answer = node.call("PUT", path, {"delete": "lock", "skiplock": 1}, quiet=True)
    return 0 if answer["status"] == 200 else complain(answer, "qm unlock <vmid>")


def destroy(vmid: str, words: list[str]) -> int:
    """Root's own way, with `--skiplock 1` whatever lock there is."""
    node = Node()
    answer = node.call("DELETE", f"/nodes/{node.name}/qemu/{vmid}", options(words)[0])
    return 0 if answer["status"] == 200 else complain(answer, "qm destroy <vmid> [OPTIONS]")


def configure(vmid: str, words: list[str]) -> int:
    """Root's own way, with `--skiplock 1` whatever lock there is."""
    node = Node()
    answer = node.call("PUT", f"/nodes/{node.name}/qemu/{vmid}/config", options(words)[0])
    return 0 if answer["status"] == 200 else complain(answer, "qm set <vmid> [OPTIONS]")


def disk_import(vmid: str, source: Path, storage: str, words: list[str]) -> int:
    """134 to 136 of the command line: the disk is `unused0` then.

    Its content is copied where the node's storage is a real directory.
    """
    usage = "qm disk import <vmid> <source> <storage> [OPTIONS]"
    node = Node()
    config = f"/nodes/{node.name}/qemu/{vmid}/config"
    answer = node.call("GET", config, {}, quiet=True)
    if answer["status"] != 200:
        return complain(answer, usage)
    if not source.is_file():
        print(f"{source}: non-existent or non-regular file", file=sys.stderr)
        return 2
    kind = options(words)[0].get("format", "raw")
    name = f"vm-{vmid}-disk-0.{kind}"
    values = {"vmid": vmid, "filename": name, "size": f"{virtual_size(source) >> 10}"}
    content = f"/nodes/{node.name}/storage/{storage}/content"
    answer = node.call("POST", content, {**values, "format": kind}, quiet=True)
    if answer["status"] != 200:
        return complain(answer, usage)
    print(f"importing disk '{source}' to VM {vmid} ...", flush=True)
    where = node.call("GET", f"/storage/{storage}", {}, quiet=True)["data"].get("path", "")
    target = Path(where, "images", vmid, name)
    if target.exists():
        subprocess.run(["qemu-img", "convert", "-O", kind, source, target], check=True)
    answer = node.call("PUT", config, {"unused0": answer["data"]}, quiet=True)
    if answer["status"] != 200:
        return complain(answer, usage)
    print(f"Successfully imported disk as 'unused0:{storage}:{vmid}/{name}'")
    return 0


def virtual_size(image: Path) -> int:
    """In bytes, as a guest sees it."""
    done = subprocess.run(
        ["qemu-img", "info", "--output=json", image], capture_output=True, check=True
    )
    return int(json.loads(done.stdout)["virtual-size"])


def agent(node: Node, method: str, vmid: str, what: str, values: dict[str, Any]) -> dict[str, Any]:
    return node.call(method, f"/nodes/{node.name}/qemu/{vmid}/agent/{what}", values, quiet=True)


def tell(answer: dict[str, Any], usage: str) -> int:
    if answer["status"] != 200:
        status = complain(answer, usage)
        return 29 if answer["reason"].startswith("Agent error") else status
    data = answer.get("data")
    if isinstance(data, dict) and set(data) == {"result"}:
        data = data["result"]
    if isinstance(data, dict | list):
        if data or isinstance(data, list):
            print(pretty(data))
    elif data is not None:
        print(data)
    return 0


def guest_exec(vmid: str, words: list[str]) -> int:
    """Exits 0 whatever the guest's program did; past the time-out it tells the pid."""
    head, program = words, []
    if "--" in words:
        where = words.index("--")
        head, program = words[:where], words[where + 1 :]
    given, rest = options(list(head))
    program = [*rest, *program]
    values: dict[str, Any] = {"command": program}
    if given.get("pass-stdin", "0") == "1":
        values["input-data"] = sys.stdin.read(1024 * 1024)
    node = Node()
    answer = agent(node, "POST", vmid, "exec", values)
    if answer["status"] != 200:
        if not answer["reason"].isascii():  # Perl's own words about the quotes (237)
            where = "/usr/share/perl5/PVE/RESTHandler.pm line 990"
            print(f"Wide character in die at {where}.", file=sys.stderr)
        status = complain(answer, EXEC)
        return 29 if answer["reason"].startswith("Agent error") else status
    started = answer["data"]
    if given.get("synchronous", "1") == "0":
        print(pretty(started))
        return 0
    until = time.monotonic() + float(given.get("timeout", 30)) * node.scale
    while True:
        answer = agent(node, "GET", vmid, "exec-status", started)
        if answer["status"] != 200:
            return complain(answer, EXEC)
        if answer["data"]["exited"]:
            print(pretty(answer["data"]))
            return 0
        if time.monotonic() >= until:
            print("timeout reached, returning pid", file=sys.stderr)
            print(pretty(started))
            return 0
        time.sleep(0.05)

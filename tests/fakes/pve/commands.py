"""`pvesh`, `qm` and `pvesm` as programs of a directory to put in front of PATH."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.fakes.pve.serving import Served

_PROGRAM = """\
#!{python} -SE
import os, sys
os.environ.update({environment!r})
sys.path.insert(0, {here!r})
from {name} import main
sys.exit(main(sys.argv[1:]))
"""


def make_commands(served: Served, directory: Path, node: str | None = None) -> Path:
    """Makes the programs in `directory`, which is made if need be; gives `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    environment = {
        "FAKE_PVE_URL": served.url,
        "FAKE_PVE_CA": str(served.ca),
        "FAKE_PVE_TICKET": served.ticket,
        "FAKE_PVE_CSRF": served.csrf,
        "FAKE_PVE_NODE": node or served.node.node,
        "FAKE_PVE_SCALE": str(served.node.time_scale),
    }
    here = str(Path(__file__).resolve().parent)
    for name in ("pvesh", "qm", "pvesm"):
        program = directory / name
        program.write_text(
            _PROGRAM.format(python=sys.executable, environment=environment, here=here, name=name)
        )
        program.chmod(0o755)
    return directory

"""Starts AgentLab inside its one file: this becomes the zip's `__main__.py`.

Everything runs straight from the zip, nothing is unpacked. For the Pythons that it was built for
the file holds ready bytecode, one table for our code and one for the libraries, read whole at
first use: fast, and the file may be replaced under a running daemon. Any other Python compiles
the sources that lie beside. See docs/decisions/0002-one-file.md.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit("agentlab: needs Python 3.11 or newer, this is %d.%d" % sys.version_info[:2])

import marshal
import zipimport
from importlib.util import MAGIC_NUMBER
from types import CodeType

ARCHIVE = sys.path[0]
PACKAGES = ARCHIVE + "/site-packages"
_tables: dict[str, dict[str, bytes]] = {}


class Importer(zipimport.zipimporter):
    """The zip importer, with the code from a table when it has it."""

    def get_code(self, fullname: str) -> CodeType:
        table = "agentlab" if fullname.startswith("agentlab") else "lib"
        if table not in _tables:
            try:
                entry = f"{ARCHIVE}/bytecode/{MAGIC_NUMBER.hex()}/{table}"
                _tables[table] = marshal.loads(self.get_data(entry))
            except OSError:  # built for other Pythons
                _tables[table] = {}
        code = _tables[table].get(fullname)
        return super().get_code(fullname) if code is None else marshal.loads(code)


def hook(path: str) -> Importer:
    if path.startswith(PACKAGES):
        return Importer(path)
    raise ImportError


sys.path_hooks.insert(0, hook)
sys.path[0] = PACKAGES

from agentlab.__main__ import main

sys.exit(main())

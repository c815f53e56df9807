"""Compiles a tree to one table of bytecode, for the Python that runs this.

    python3 -S -B bytecode.py SITE_PACKAGES OUT

Started fresh by build.py for each Python: marshal's output depends on which strings the process
has met before, so the same process must always do the same things in the same order.
"""

import importlib.util
import marshal
import os
import sys


def module_name(path: str) -> str:
    name = path.removesuffix(".py").replace("/", ".")
    return name.removesuffix(".__init__")


def table(root: str, paths: list[str]) -> bytes:
    codes: dict[str, bytes] = {}
    for path in paths:
        with open(os.path.join(root, path), "rb") as file:
            source = file.read()
        # A name that is no file, so that a traceback shows our source and not a look-alike's
        code = compile(source, f"agentlab!/{path}", "exec", dont_inherit=True)
        codes[module_name(path)] = marshal.dumps(code)
    return marshal.dumps(codes)


def main() -> None:
    root, out = sys.argv[1:]
    paths = sorted(
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root)
        for name in names
        if name.endswith(".py")
    )
    folder = os.path.join(out, importlib.util.MAGIC_NUMBER.hex())
    os.makedirs(folder)
    ours = [path for path in paths if path.startswith("agentlab/")]
    theirs = [path for path in paths if not path.startswith("agentlab/")]
    for name, some in (("agentlab", ours), ("lib", theirs)):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(table(root, some))


main()

#!/usr/bin/env python3
"""Builds dist/agentlab, the one file: `make dist`. The same bytes from the same commit.

    build.py [--out DIR] [--wheels DIR] [--python PYTHON …]

It takes what git tracks, as it lies in the work tree, and the pinned libraries; shiv packs them;
then the start-up is made ours (zip_main.py) and bytecode is added for each --python (the Python
that runs this, unless told otherwise). docs/decisions/0002-one-file.md has the reasons.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "packaging/requirements.txt"
# -I: no settings or packages of the user's; -S: no site-packages. What we import is in the file.
SHEBANG = "/usr/bin/env -S python3 -IS"
COMPILED = (".so", ".pyd", ".dylib", ".dll", ".a", ".o")
EARLIEST = 315532800  # 1980: a zip knows no earlier time


def run(argv: list[str | Path], **env: str) -> str:
    done = subprocess.run(
        argv,
        check=False,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"error: {argv[0]} ended with status {done.returncode}:\n{done.stdout}")
    return done.stdout


def git(*argv: str) -> str:
    # safe.directory: the checkout may belong to someone else than who builds
    return run(["git", "-c", f"safe.directory={ROOT}", "-C", ROOT, *argv])


def commit() -> tuple[str, int]:
    """The commit, `-dirty` when tracked files differ from it, and its time."""
    if not (ROOT / ".git").exists():
        return "unknown", int(os.environ.get("SOURCE_DATE_EPOCH", EARLIEST))
    name = git("rev-parse", "HEAD").strip()[:12]
    dirty = git("status", "--porcelain", "--untracked-files=no").strip()
    return name + ("-dirty" if dirty else ""), int(git("log", "-1", "--format=%ct"))


def wheels(folder: Path) -> list[Path]:
    """The libraries as wheels, made once per requirements.txt: PyYAML's is built from source."""
    done = folder / hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]
    if not done.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps"]
            run(
                [*pip, "--require-hashes", "-r", REQUIREMENTS, "-w", fresh],
                PYYAML_FORCE_LIBYAML="0",
            )
            try:
                Path(fresh).rename(done)
            except OSError:  # another build was faster
                if not done.is_dir():
                    raise
            else:
                Path(fresh).mkdir()  # what TemporaryDirectory takes away
    return sorted(done.glob("*.whl"))


def stage(site: Path, libraries: list[Path], build: tuple[str, int]) -> None:
    """Lays out the tree that is packed: our tracked files, `_build.py`, the libraries."""
    for wheel in libraries:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    for path in site.rglob("*"):
        # Of the packages' own records only the licences and the version are worth carrying
        if path.parent.suffix == ".dist-info" and path.name in {"RECORD", "WHEEL", "top_level.txt"}:
            path.unlink()
    if (ROOT / ".git").exists():
        ours = [ROOT / name for name in git("ls-files", "-z", "agentlab").split("\0") if name]
    else:
        ours = [p for p in (ROOT / "agentlab").rglob("*") if "__pycache__" not in p.parts]
    for path in ours:
        if path.is_file():
            target = site / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    shutil.copyfile(ROOT / "LICENSE", site / "agentlab/LICENSE")
    text = f'COMMIT = "{build[0]}"\nCOMMITTED = {build[1]}\n'
    (site / "agentlab/_build.py").write_text(text)
    compiled = [path.name for path in site.rglob("*") if path.suffix in COMPILED]
    if compiled:
        sys.exit(f"error: compiled modules in the tree: {', '.join(compiled)}")


def pack(site: Path, work: Path, when: int) -> dict[str, bytes]:
    """What shiv makes of the tree, without its unpacking start-up."""
    packed = work / "shiv.pyz"
    shiv: list[str | Path] = [sys.executable, "-m", "shiv", "--site-packages", site, "-o", packed]
    options = ["--entry-point", "agentlab.__main__:main", "--python", SHEBANG, "--reproducible"]
    run([*shiv, *options], SOURCE_DATE_EPOCH=str(when), PYTHONWARNINGS="ignore")
    with zipfile.ZipFile(packed) as archive:
        return {
            name: archive.read(name)
            for name in archive.namelist()
            if name == "environment.json" or name.startswith("site-packages/")
        }


def bytecode(site: Path, work: Path, pythons: list[str]) -> dict[str, bytes]:
    out = work / "bytecode"
    script = ROOT / "packaging/bytecode.py"
    for python in pythons:
        run([python, "-s", "-S", "-P", "-B", script, site, out], PYTHONHASHSEED="0")
    return {f"bytecode/{p.relative_to(out)}": p.read_bytes() for p in out.rglob("*") if p.is_file()}


def write(entries: dict[str, bytes], out: Path, when: int) -> None:
    """The zip, whole or not at all: sorted, one time, one mode; bytecode uncompressed for speed."""
    stamp = time.gmtime(max(when, EARLIEST))[:6]
    fresh = out.with_name(f".{out.name}.{os.getpid()}")
    with fresh.open("wb") as file:
        file.write(f"#!{SHEBANG}\n".encode())
        with zipfile.ZipFile(file, "w") as archive:
            for name in sorted(entries):
                entry = zipfile.ZipInfo(name, stamp)
                entry.create_system = 3
                entry.external_attr = 0o100644 << 16
                fast = name.startswith("bytecode/") or name == "__main__.py"
                entry.compress_type = zipfile.ZIP_STORED if fast else zipfile.ZIP_DEFLATED
                archive.writestr(entry, entries[name])
    fresh.chmod(0o755)
    fresh.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="default: dist")
    parser.add_argument("--wheels", type=Path, default=ROOT / "build/wheels")
    parser.add_argument("--python", action="append", help="bytecode for this Python; repeatable")
    args = parser.parse_args()
    build = commit()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="agentlab-dist-") as scratch:
        work = Path(scratch)
        site = work / "site-packages"
        site.mkdir()
        stage(site, wheels(args.wheels), build)
        entries = pack(site, work, build[1])
        entries |= bytecode(site, work, args.python or [sys.executable])
        entries["__main__.py"] = (ROOT / "packaging/zip_main.py").read_bytes()
    program = args.out / "agentlab"
    write(entries, program, build[1])
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    (args.out / "agentlab.sha256").write_text(f"{digest}  agentlab\n")
    link = args.out / "agentlabd"
    link.unlink(missing_ok=True)
    link.symlink_to("agentlab")
    size = program.stat().st_size
    print(json.dumps({"file": str(program), "commit": build[0], "bytes": size, "sha256": digest}))


if __name__ == "__main__":
    main()

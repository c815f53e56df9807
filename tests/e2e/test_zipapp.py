"""The one file: what is in it, that it is always the same, and where it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from agentlab import VERSION
from agentlab.runner_file import runner_bytes
from tests.conftest import ROOT, build_program, find_python

LIBRARIES = {
    "certifi",
    "charset_normalizer",
    "idna",
    "proxmoxer",
    "requests",
    "urllib3",
    "yaml",
    "_yaml",
}
COMPILED = (".so", ".pyd", ".dylib", ".dll")


def run(argv: Sequence[str | Path], **settings: object) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in argv]
    return subprocess.run(  # type: ignore[call-overload,no-any-return] # settings are Popen's
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **settings
    )


def names(program: Path) -> list[str]:
    with zipfile.ZipFile(program) as archive:
        return archive.namelist()


def test_it_holds_no_compiled_module(program: Path) -> None:
    assert [name for name in names(program) if name.endswith(COMPILED) or ".so." in name] == []


def test_it_holds_our_code_and_three_libraries_with_what_those_need(program: Path) -> None:
    packed = {name.split("/")[1] for name in names(program) if name.startswith("site-packages/")}
    packages = {name for name in packed if not name.endswith(".dist-info")}
    assert packages == LIBRARIES | {"agentlab"}
    assert "site-packages/agentlab/LICENSE" in names(program)


def test_every_library_carries_its_licence(program: Path) -> None:
    recorded = {name.split("/")[1] for name in names(program) if ".dist-info/" in name}
    with_licence = {
        name.split("/")[1] for name in names(program) if ".dist-info/" in name and "LICEN" in name
    }
    assert with_licence == recorded


def test_the_tests_and_tools_are_not_packed(program: Path) -> None:
    outside = ("site-packages/", "bytecode/", "environment.json", "__main__.py")
    assert [name for name in names(program) if not name.startswith(outside)] == []
    assert [name for name in names(program) if "fakepve" in name or "pytest" in name] == []


def clone(target: Path) -> Path:
    git = ["git", "-c", "safe.directory=*", "clone", "-q", "--no-local", f"file://{ROOT}", target]
    done = run(git)
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.slow
def test_two_builds_of_a_commit_are_the_same_bytes(tmp_path: Path) -> None:
    """In two directories, with another umask, and with the libraries made anew."""
    one = build_program(
        clone(tmp_path / "a"), tmp_path / "out-a", "--wheels", ROOT / "build/wheels"
    )
    old = os.umask(0o077)
    try:
        other = build_program(clone(tmp_path / "some/where/else"), tmp_path / "out-b")
    finally:
        os.umask(old)
    assert one.read_bytes() == other.read_bytes()
    assert (one.parent / "agentlab.sha256").read_text() == (
        other.parent / "agentlab.sha256"
    ).read_text()
    version = run([one, "--version"]).stdout
    assert "-dirty" not in version
    assert one.stat().st_mode & 0o777 == other.stat().st_mode & 0o777 == 0o755


@pytest.mark.slow
def test_a_changed_tree_says_so(tmp_path: Path) -> None:
    checkout = clone(tmp_path / "checkout")
    with (checkout / "agentlab/errors.py").open("a") as file:
        file.write("# changed\n")
    (checkout / "agentlab/stray.py").write_text("not tracked, so not packed")
    program = build_program(checkout, tmp_path / "out", "--wheels", ROOT / "build/wheels")
    assert "-dirty, Python" in run([program, "--version"]).stdout
    assert "site-packages/agentlab/stray.py" not in names(program)


def test_the_sum_beside_it_is_its_own(program: Path) -> None:
    done = run(["sha256sum", "--check", "agentlab.sha256"], cwd=program.parent)
    assert done.returncode == 0, done.stdout


def test_version_on_each_python(program: Path, python: str) -> None:
    done = run([python, program, "--version"])
    release = run(
        [python, "-c", "import platform; print(platform.python_version())"]
    ).stdout.strip()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"agentlab {VERSION} (commit ")
    assert done.stdout.endswith(f", Python {release})\n")
    assert done.stderr == ""


def test_help_on_each_python(program: Path, python: str) -> None:
    done = run([python, "-W", "error", program, "--help"])
    assert done.returncode == 0, done.stderr
    assert "job run" in done.stdout or "job" in done.stdout


def test_every_module_can_be_imported_on_each_python(program: Path, python: str) -> None:
    """The daemon's too, with the libraries, straight from the file: nothing is unpacked."""
    modules = [
        name.removeprefix("site-packages/").removesuffix(".py").replace("/", ".")
        for name in names(program)
        if name.startswith("site-packages/agentlab/") and name.endswith(".py")
    ]
    wanted = sorted({name.removesuffix(".__init__") for name in modules} - {"agentlab.__main__"})
    script = f"""
import importlib, runpy, sys
sys.argv = [{str(program)!r}, "--version"]
try:
    runpy.run_path({str(program)!r}, run_name="__main__")
except SystemExit:
    pass
for name in {[*wanted, "yaml", "requests", "proxmoxer"]!r}:
    importlib.import_module(name)
outside = [name for name, module in sys.modules.items()
    if name.split(".")[0] in {sorted(LIBRARIES | {"agentlab"})!r}
    and not (getattr(module, "__file__", "") or "").startswith({str(program)!r})]
print(outside)
"""
    # run_path looks after sys.path itself while the file runs; later imports go by our hook
    prelude = f"import sys; sys.path.insert(0, {str(program) + '/site-packages'!r})\n"
    done = run([python, "-I", "-S", "-W", "error", "-c", prelude + script])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_client_imports_nothing_but_the_standard_library(program: Path) -> None:
    done = run([sys.executable, "-X", "importtime", program, "--help"])
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not imported & (LIBRARIES | {"sqlite3", "subprocess", "asyncio"})


def test_called_agentlabd_it_is_the_daemon(program: Path) -> None:
    done = run([program.parent / "agentlabd", "--help"])
    assert done.returncode == 0, done.stderr
    assert "--config" in done.stdout


def test_an_older_python_is_refused_with_a_sentence(program: Path) -> None:
    old = find_python(10)
    if old is None:
        pytest.skip("no Python 3.10 here: set AGENTLAB_PYTHON3_10")
    done = run([old, program, "--version"])
    assert done.returncode == 1
    assert done.stderr == "agentlab: needs Python 3.11 or newer, this is 3.10\n"


def test_the_runner_is_the_same_from_the_file_and_from_a_checkout(program: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(program) + '/site-packages'!r})\n"
        "from agentlab.runner_file import runner_bytes; sys.stdout.buffer.write(runner_bytes())"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], check=True, capture_output=True)
    assert done.stdout == runner_bytes()


def test_the_runner_runs_on_each_python(tmp_path: Path, python: str) -> None:
    runner = tmp_path / "runner"
    runner.write_bytes(runner_bytes())
    done = run([python, "-I", "-S", runner, "--version"], cwd="/")
    assert done.stdout.startswith(f"agentlab {VERSION} (commit unknown, "), done.stderr


NOBODY = 65534


@pytest.fixture
def read_only(program: Path, tmp_path: Path) -> Iterator[Path]:
    """The program in a directory where nobody can write: read-only as well, when we may mount."""
    folder = tmp_path / "ro"
    folder.mkdir()
    shutil.copy2(program, folder / "agentlab")
    for path in (folder, *folder.parents):
        if path != Path(path.anchor) and path.stat().st_uid == os.getuid():
            path.chmod(path.stat().st_mode | 0o555)
    folder.chmod(0o555)
    mounted = os.getuid() == 0 and not (
        run(["mount", "--bind", folder, folder]).returncode
        or run(["mount", "-o", "remount,bind,ro", folder]).returncode
    )
    yield folder
    if mounted:
        run(["umount", folder])
    folder.chmod(0o755)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["daemon", "--help"]])
def test_it_runs_where_nothing_can_be_written(
    read_only: Path, tmp_path: Path, arguments: list[str]
) -> None:
    """Read-only directory, no writable home, no writable temporary directory, no rights."""
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    env = {"HOME": str(home), "TMPDIR": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    python = find_python(11) or sys.executable
    who: list[str | Path] = []
    if os.getuid() == 0:
        if run(["setpriv", f"--reuid={NOBODY}", python, "-c", "pass"]).returncode != 0:
            python = "/usr/bin/python3"  # the other one lies where only root may look
        who = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if run([*who, python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]).returncode:
        pytest.skip("no Python 3.11 that an ordinary user may run: /usr/bin/python3 is too old")
    done = run([*who, python, read_only / "agentlab", *arguments], env=env, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert list(home.iterdir()) == []

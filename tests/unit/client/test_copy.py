"""Copies: which side is which, and archives that a hostile guest could send."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from agentlab.client import unpack
from agentlab.client.copy import Side, pack, parse_header, parse_side, parse_sides
from agentlab.client.unpack import put_in_place, stays_inside, unpack_file, unpack_tree
from agentlab.errors import Invalid, Unavailable


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("1003:/work/a", Side("1003", "/work/a")),
        ("box:a:b", Side("box", "a:b")),
        ("box:", Side("box", ".")),
        ("./a:b", Side("", "./a:b")),
        ("/a:b", Side("", "/a:b")),
        ("a/b:c", Side("", "a/b:c")),
        ("Box:c", Side("", "Box:c")),
        (":c", Side("", ":c")),
        ("-", Side("", "-")),
        ("a", Side("", "a")),
    ],
)
def test_which_side(text: str, side: Side) -> None:
    assert parse_side(text) == side


def test_one_side_is_in_a_sandbox() -> None:
    assert parse_sides("a", "1003:b") == (Side("", "a"), Side("1003", "b"))
    for pair in (("a", "b"), ("1:a", "2:b"), ("", "1:a"), ("1:a", "")):
        with pytest.raises(Invalid):
            parse_sides(*pair)


@pytest.mark.parametrize(
    ("path", "name"),
    [("/a/b", "b"), ("/a/b/", "b"), ("b", "b"), ("/", "."), (".", "."), ("a/.", ".")],
)
def test_the_name_at_the_end(path: str, name: str) -> None:
    assert Side("x", path).name == name


@pytest.mark.parametrize(
    "line",
    [b"", b"agentlab-cp dir \n", b"agentlab-cp link 3\n", b"agentlab-cp dir -1\n", b"x" * 64],
)
def test_a_header_of_no_kind(line: bytes) -> None:
    with pytest.raises(Unavailable):
        parse_header(line)
    assert parse_header(b"agentlab-cp dir 12\n") == ("dir", 12)


@pytest.mark.parametrize(
    ("target", "depth", "inside"),
    [
        ("a", 0, True),
        ("./a/b", 0, True),
        ("../a", 1, True),
        ("../../a", 2, True),
        (".", 0, True),
        ("", 0, False),
        ("/a", 3, False),
        ("..", 0, False),
        ("../a", 0, False),
        ("../../a", 1, False),
        ("a/..", 5, False),
        ("a/../../b", 5, False),
        ("../a/..", 5, False),
        ("./../a", 0, False),
    ],
)
def test_where_a_link_leads(target: str, depth: int, inside: bool) -> None:
    assert stays_inside(target, depth) is inside


def archive(*entries: tuple[tarfile.TarInfo, bytes], cut: int | None = None) -> io.BytesIO:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as made:
        for entry, content in entries:
            made.addfile(entry, io.BytesIO(content))
    return io.BytesIO(gzip.compress(plain.getvalue())[:cut])


def entry(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **more: object
) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.type, made.size = kind, len(content)
    for key, value in more.items():
        setattr(made, key, value)
    return made, content


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("untouched")
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def test_a_tree(folder: Path) -> None:
    modes = []
    found = unpack_tree(
        archive(
            entry("./", kind=tarfile.DIRTYPE, mode=0o755),
            entry("./locked", kind=tarfile.DIRTYPE, mode=0o500),
            entry("./locked/run", b"run", mode=0o6777),
            entry("./locked/up", kind=tarfile.SYMTYPE, linkname="../a"),
            entry("./a", b"\0" * 3000, mode=0o444),
            entry("./same", kind=tarfile.LNKTYPE, linkname="./a"),
        ),
        folder, 3003, modes.append,
    )  # fmt: skip
    assert (found.files, found.size, found.left_out, sum(modes)) == (3, 3003, [], 3003)
    assert (folder / "locked/run").stat().st_mode & 0o7777 == 0o755
    assert (folder / "locked").stat().st_mode & 0o7777 == 0o700
    assert (folder / "locked/up").read_bytes() == (folder / "same").read_bytes() == b"\0" * 3000


HOSTILE: dict[str, Callable[[], io.BytesIO]] = {
    "an absolute name": lambda: archive(entry("/tmp/x", b"x")),
    "a name that goes up": lambda: archive(entry("../x", b"x")),
    "a name that goes up in the middle": lambda: archive(entry("a/../../x", b"x")),
    "a way through a link": lambda: archive(
        entry("a", kind=tarfile.SYMTYPE, linkname="."), entry("a/secret", b"x")
    ),
    "two of one name": lambda: archive(entry("a", b"1"), entry("a", b"2")),
    "a file in the place of a directory": lambda: archive(entry("a", b"1"), entry("a/b", b"2")),
    "a link in the place of a file": lambda: archive(
        entry("a", kind=tarfile.SYMTYPE, linkname="b"), entry("a", b"2")
    ),
    "more than it said": lambda: archive(entry("a", bytes(40 << 20))),
    "a name without end": lambda: archive(entry("a" * (3 << 20), b"")),
    "a long part": lambda: archive(entry("ö" * 200, b"")),
    "a name of nothing": lambda: archive(entry(".", b"x")),
    "cut off": lambda: archive(entry("a", os.urandom(9000)), cut=5000),
    "cut off at the checksum": lambda: archive(entry("a", os.urandom(9000)), cut=-6),
    "nothing": lambda: io.BytesIO(b""),
    "no gzip": lambda: io.BytesIO(b"x" * 2000),
    "no tar": lambda: io.BytesIO(gzip.compress(b"x" * 2000)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_honest_archive(folder: Path, name: str) -> None:
    with pytest.raises(Unavailable, match="cannot copy: "):
        unpack_tree(HOSTILE[name](), folder, 1000)
    assert (folder.parent / "secret").read_text() == "untouched"
    assert sorted(os.listdir(folder.parent)) == ["in", "secret"]


def test_what_is_left_out(folder: Path) -> None:
    found = unpack_tree(
        archive(
            entry("disk", kind=tarfile.BLKTYPE, devmajor=8),
            entry("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
            entry("pipe", kind=tarfile.FIFOTYPE),
            entry("out", kind=tarfile.SYMTYPE, linkname="../secret"),
            entry("root", kind=tarfile.SYMTYPE, linkname="/etc/passwd"),
            entry("hard", kind=tarfile.LNKTYPE, linkname="nothing"),
            entry("fine", b"x"),
        ),
        folder, 1,
    )  # fmt: skip
    assert found.left_out == ["disk", "null", "pipe", "out", "root", "hard"]
    assert os.listdir(folder) == ["fine"]


def test_a_hard_link_leads_to_nothing_outside(folder: Path) -> None:
    for target in ("../secret", "/etc/passwd"):
        with pytest.raises(Unavailable, match="the name"):
            unpack_tree(archive(entry("h", kind=tarfile.LNKTYPE, linkname=target)), folder, 1)


def test_links_that_lead_out_together_are_left_out(folder: Path) -> None:
    """Each stays inside by its text; behind the first, the second would not."""
    found = unpack_tree(
        archive(
            entry("x", kind=tarfile.DIRTYPE),
            entry("x/y", kind=tarfile.DIRTYPE),
            entry("x/y/top", kind=tarfile.SYMTYPE, linkname="../.."),
            entry("out", kind=tarfile.SYMTYPE, linkname="x/y/top/.."),
        ),
        folder, 1,
    )  # fmt: skip
    assert found.left_out == ["out"]
    assert (folder / "x/y/top").resolve() == folder.resolve()


def test_one_file_is_one_file(folder: Path) -> None:
    unpack_file(archive(entry("./what ever", b"x", mode=0o640)), folder, 1)
    assert (folder / "x").read_bytes() == b"x"
    for made in (archive(), archive(entry("a", b"1"), entry("b", b"2")),
                 archive(entry("a", kind=tarfile.DIRTYPE))):  # fmt: skip
        for each in folder.iterdir():
            each.rmdir() if each.is_dir() else each.unlink()
        with pytest.raises(Unavailable):
            unpack_file(made, folder, 1)


def test_entries_without_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "_MOST", 10)
    unpack_tree(archive(*(entry(f"{n}") for n in range(9))), folder, 1)
    with pytest.raises(Unavailable, match="more than 10 entries"):
        unpack_tree(archive(*(entry(f"a{n}") for n in range(11))), folder, 1)


def test_what_we_pack_we_unpack(folder: Path, tmp_path: Path) -> None:
    tree, left_out, packed = tmp_path / "tree", list[str](), io.BytesIO()
    (tree / "d").mkdir(parents=True)
    (tree / "d/f").write_bytes(bytes(range(256)))
    os.mkfifo(tree / "pipe")
    pack(tree, packed, left_out.append)
    assert left_out == ["x/pipe"]
    unpack_tree(io.BytesIO(packed.getvalue()), folder, 256)
    assert (folder / "x/d/f").read_bytes() == bytes(range(256))


def test_into_its_place(tmp_path: Path) -> None:
    def tree(name: str, text: str) -> Path:
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub/f").write_text(text)
        return tmp_path / name

    put_in_place(tree("new", "1"), tmp_path / "final")
    (tmp_path / "final/sub/more").touch()
    put_in_place(tree("new", "2"), tmp_path / "final")
    assert (tmp_path / "final/sub/f").read_text() == "2"
    assert (tmp_path / "final/sub/more").exists()
    (tmp_path / "f").write_text("3")
    with pytest.raises(Invalid, match="it is a directory"):
        put_in_place(tmp_path / "f", tmp_path / "final")
    with pytest.raises(Invalid, match="it is no directory"):
        put_in_place(tree("other", "4"), tmp_path / "f")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Invalid, match="it is a link"):
        put_in_place(tree("last", "5"), tmp_path / "linked")
    assert os.listdir(tmp_path / "elsewhere") == []

"""Copying into sandboxes and out of them: which side is which, and what runs in the guest.

A tree goes as a compressed tar through a program's stdin or stdout.  On either side all of it
arrives beside its place, and is moved there when it is whole.
"""

from __future__ import annotations

import gzip
import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from agentlab.errors import Invalid, Unavailable

_REMOTE = re.compile(r"([a-z0-9][a-z0-9._-]{0,62}):(.*)", re.ASCII | re.DOTALL)
_HEADER = re.compile(rb"agentlab-cp (file|dir) (\d{1,17})\n")
MAX_HEADER = 64  # bytes

# $1 destination, $2 name, $3 file, dir or raw.  What comes is a tar with one entry, `x`.
RECEIVE = """
set -u
fail() { printf '%s\\n' "$1" >&2; exit 1; }
to=$1
if [ -d "$1" ]; then
    [ -n "$2" ] || fail "$1 is a directory"
    to=${1%/}/$2
else
    case $1 in */) fail "there is no directory $1" ;; esac
fi
parent=$(dirname -- "$to") && [ -d "$parent" ] || fail "there is no directory $parent"
[ "$3" = dir ] || [ ! -d "$to" ] || fail "$to is a directory"
[ "$3" != dir ] || [ -d "$to" ] || [ ! -e "$to" ] || fail "$to is not a directory"
new=$(mktemp -d -- "$parent/.agentlab-XXXXXXXX") || exit 1
trap 'rm -rf -- "$new"' EXIT
trap 'exit 1' HUP INT TERM
if [ "$3" = raw ]; then
    cat >"$new/x" || exit 1
    chmod "$(printf %o $((0666 & ~$(umask))))" "$new/x"
else
    tar -C "$new" -xzpf - --no-same-owner || exit 1
    [ -e "$new/x" ] || fail "it did not arrive whole"
fi
if [ "$3" = dir ] && [ -d "$to" ]; then
    cp -al --remove-destination -- "$new/x/." "$to/"
else
    mv -fT -- "$new/x" "$to"
fi
"""

# $1 source, $2 tree or raw: says what there is, then sends it.
SEND = """
set -u
what=$(readlink -f -- "$1") && [ -e "$what" ] || { echo "there is no $1" >&2; exit 1; }
if [ "$2" = raw ]; then
    [ ! -d "$what" ] || { echo "$1 is a directory" >&2; exit 1; }
    exec cat -- "$what"
fi
pack() { exec tar --format=gnu -I 'gzip -1' -cf - -C "$@"; }
if [ -d "$what" ]; then
    size=$(du -sb -- "$what") || exit 1
    printf 'agentlab-cp dir %s\\n' "${size%%[!0-9]*}"
    pack "$what" .
fi
[ -f "$what" ] || { echo "$1 is neither a file nor a directory" >&2; exit 1; }
printf 'agentlab-cp file %s\\n' "$(stat -c %s -- "$what")"
pack "$(dirname -- "$what")" "./$(basename -- "$what")"
"""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a copy: in a sandbox, or "" for here.  `path` "-" is stdin or stdout."""

    sandbox: str
    path: str

    @property
    def name(self) -> str:
        """What it is called at its end: "." for what is to go into the directory itself."""
        return self.path.rstrip("/").rpartition("/")[2] or "."


def parse_side(text: str) -> Side:
    """`1003:src` and `box:/work` are in a sandbox; `./a:b` and `/a:b` are here."""
    match = _REMOTE.fullmatch(text)
    if match is None:
        return Side("", text)
    return Side(match[1], match[2] or ".")


def parse_sides(source: str, destination: str) -> tuple[Side, Side]:
    """Both, exactly one of them in a sandbox; Invalid."""
    here, there = parse_side(source), parse_side(destination)
    hint = "one side is SANDBOX:PATH; a path here that has a colon begins with ./"
    if here.sandbox and there.sandbox:
        raise Invalid("cannot copy from one sandbox to another", hint=hint)
    if not here.sandbox and not there.sandbox:
        raise Invalid("cannot copy: neither side is in a sandbox", hint=hint)
    if not source or not destination:
        raise Invalid("cannot copy: a path is empty", hint=hint)
    return here, there


def parse_header(line: bytes) -> tuple[str, int]:
    """`file` or `dir`, and the bytes in it, as the guest says."""
    match = _HEADER.fullmatch(line)
    if match is None:
        raise Unavailable("cannot copy: the guest sent something else")
    return match[1].decode(), int(match[2])


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files in a directory."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(
        each.lstat().st_size for each in path.rglob("*") if each.is_file() and not each.is_symlink()
    )


def pack(path: Path, out: IO[bytes], leave_out: Callable[[str], None]) -> None:
    """Writes a compressed tar of one entry, `x`; devices, pipes and sockets are left out."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if entry.isreg() or entry.isdir() or entry.issym() or entry.islnk():
            return entry
        leave_out(entry.name)
        return None

    with (
        gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.GNU_FORMAT) as archive,
    ):
        archive.add(path, "x", filter=plain)


def check_room(folder: Path, size: int) -> None:
    """Unavailable when a disk has less room than this."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise Unavailable(f"cannot copy: {size} bytes, and {folder} has room for {free}")

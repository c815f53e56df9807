"""Documents as a tar.gz whose bytes depend on nothing but the documents, each bounded in size."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence

MAX_MEMBER = 1 << 20  # bytes
_MAX_ENTRY = MAX_MEMBER // 4
_MAX_WORK = 2 * MAX_MEMBER  # bytes that are looked at for one list, too large entries and all


def render(document: object) -> bytes:
    """A document as ASCII, so that what guests wrote is escaped; MAX_MEMBER bytes at most."""
    content = _json(document).encode("ascii") + b"\n"
    if len(content) > MAX_MEMBER:
        return _json({"left_out": f"{len(content)} bytes"}).encode("ascii") + b"\n"
    return content


def fit(
    name: str,
    entries: Sequence[object],
    show: Callable[[object], object] = lambda entry: entry,
    *,
    whole: bool = True,
) -> dict[str, object]:
    """A list as a document that `render` takes: its last entries, as many as there is room for.

    `show` makes an entry fit to be shown; it is asked for no more than can be of use.  `complete`
    is False when some entries are missing; `whole` False: some were missing before.
    """
    kept: list[object] = []
    room, work = MAX_MEMBER - 1024, _MAX_WORK
    for entry in reversed(entries):
        shown = show(entry)
        size = _size(shown)
        work -= size
        if size > _MAX_ENTRY:
            identity = shown.get("id", "") if isinstance(shown, dict) else ""
            shown = {"id": identity, "left_out": f"{size} bytes"}
            size = _size(shown)
        if size > room:
            break
        room -= size
        kept.append(shown)
        if work < 0:
            break
    return {"complete": whole and len(kept) == len(entries), name: kept[::-1]}


def _size(entry: object) -> int:
    text = _json(entry)
    return len(text) + 2 * text.count("\n") + 4  # indented twice, and between two others


def _json(document: object) -> str:
    return json.dumps(document, indent=1, sort_keys=True, allow_nan=False)


def pack(folder: str, members: Mapping[str, bytes], at: float) -> bytes:
    """All members in one folder, by name; `at` is the time that all of them get."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=packed, mode="wb", compresslevel=6, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in sorted(members.items()):
            entry = tarfile.TarInfo(f"{folder}/{name}")  # uid, gid and names of owners are 0 and ""
            entry.size, entry.mtime, entry.mode = len(content), max(0, int(at)), 0o600
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()

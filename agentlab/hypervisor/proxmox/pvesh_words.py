"""The words of pvesh: how a call is written, and how its answers and complaints are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentlab.errors import AgentLabError, Internal, Invalid
from agentlab.hypervisor.proxmox.transport import Method, Parameters, ReplyLost, classify

_VERBS: Mapping[str, str] = {"GET": "get", "POST": "create", "PUT": "set", "DELETE": "delete"}
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_PATH = re.compile(r"(/[^/\s\x00-\x1f]+)+")
_LONGEST_WORD = 120_000  # bytes; Linux takes 128 KiB in one argument
_SIGNALS = (1, 2, 3, 6, 9, 11, 13, 15)  # sh adds 128; other high numbers are Perl's


@dataclass(frozen=True, slots=True)
class Said:
    """What an error output means: a status as HTTP has it, the words, the fields of a 400."""

    status: int
    words: str
    errors: Mapping[str, str]


def render_call(method: Method, path: str, params: Parameters) -> list[str]:
    """The words of one pvesh call.  Internal when it would show a secret, or is malformed."""
    if not _PATH.fullmatch(path):
        raise Internal(f"cannot call Proxmox: {path!r} is no path")
    hidden = {"password", "cipassword", "input-data"} | (
        {"content"} if path.endswith("/agent/file-write") else set()
    )
    if hidden & params.keys():
        raise Internal(f"{method} {path}: everybody can read the arguments of pvesh")
    words = ["pvesh", _VERBS[method], path, "--output-format=json"]
    return words + render_parameters(params)


def render_parameters(params: Parameters) -> list[str]:
    """Parameters as options: True as 1, False as 0, a sequence as one option many times.

    Perl's Getopt::Long takes all that follows the first "=" as the value, be it "-x", "--help"
    or "@file" (which it does not know).  Only an empty value is an error there, and goes as a
    word of its own.
    """
    words: list[str] = []
    for key, value in params.items():
        if not _KEY.fullmatch(key):
            raise Internal(f"cannot call Proxmox: {key!r} is no parameter")
        values = (value,) if isinstance(value, str | int) else value
        for each in values:
            text = str(int(each)) if isinstance(each, bool) else str(each)
            if "\0" in text or len(text.encode(errors="replace")) > _LONGEST_WORD:
                raise Invalid(f"cannot call Proxmox: {key} is too long or has a zero byte")
            words += [f"--{key}={text}"] if text else [f"--{key}", ""]
    return words


def is_quick(path: str) -> bool:
    """Whether a call runs no task whatever its method: those to the guest agent."""
    return re.fullmatch(r"/nodes/[^/]+/qemu/\d+/agent(/[a-z-]+)?", path) is not None


def subject_of(path: str, params: Parameters) -> str:
    """What a changing call is about, of which there is only one at a time.

    For a clone it is the VM to be, so that clones of one template go side by side.
    """
    if "newid" in params:
        return f"vm {params['newid']}"
    found = re.match(r"/nodes/[^/]+/(?:qemu|lxc)(?:/(\d+))?", path)
    if found and (found.group(1) or "vmid" in params):
        return f"vm {found.group(1) or params['vmid']}"
    found = re.fullmatch(r"/nodes/[^/]+/storage/([^/]+)/content(?:/(.+))?", path)
    if found:
        volume = str(found.group(2) or params.get("filename", ""))
        return f"volume {found.group(1)}/{volume.rpartition('/')[2].rpartition(':')[2]}"
    return path


def parse_value(stdout: bytes) -> object:
    """The value that pvesh gave: JSON on the last line, after the worker's own lines.

    None when there is no value; `set …/config` has only lines of its worker, for example.
    """
    lines = stdout.decode(errors="replace").rstrip().splitlines()
    if not lines:
        return None
    try:
        return json.loads(lines[-1])
    except ValueError:
        # A worker's last line may lack its end, and the UPID then follows on it.
        found = re.search(r'"(UPID:[^"\s]+:)"$', lines[-1])
        return found.group(1) if found else None


def parse_error(stderr: bytes) -> Said:
    """The status, words and fields of what pvesh or qm said before it failed."""
    lines = []
    for raw in stderr.decode(errors="replace").splitlines():
        line = raw.strip()
        if re.match(r"(pvesh|qm) [a-z]+ .*[<\[]", line):
            break  # how to use it, after a 400
        if line and not re.match(r"(Wide character|Use of uninitialized value) .* line \d+", line):
            lines.append(line)
    for index, line in enumerate(lines):
        found = re.match(r"([1-5]\d\d) (.+)", line)
        if found:
            lines[index] = found.group(2)
            fields = lines[index + 1 :] if found.group(1) == "400" else []
            return Said(int(found.group(1)), "; ".join(lines), _fields(fields))
    words = "; ".join(lines[-5:])
    if words.startswith("Permission check failed"):
        return Said(403, words, {})
    if re.match(r"no '[a-z]+' handler", words, re.IGNORECASE):
        return Said(501, words, {})
    return Said(500, words, {})


def _fields(lines: Sequence[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    key = ""
    for line in lines:
        found = re.match(r"([A-Za-z0-9_.\[\]-]+): (.*)", line)
        if found:
            key, fields[found.group(1)] = found.groups()
        elif key:
            fields[key] += f" {line}"
    return fields


def call_error(what: str, status: int, stderr: bytes) -> AgentLabError:
    if status - 128 in _SIGNALS:
        return ReplyLost(f"{what}: its process was killed")
    said = parse_error(stderr)
    words = said.words or f"it ended with status {status} and said nothing"
    return classify(what, said.status, words, said.errors)


def is_list(value: Any) -> bool:
    return not isinstance(value, str | int)

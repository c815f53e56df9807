"""The guest agent of Proxmox's machines.  All that comes back is hostile input.

A program is started through a small shell script that takes a name, used once, before it runs:
the same request that arrives twice runs it once.  What the script is given and what it prints
crosses Proxmox's own decoding, so stdin goes in as base64.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import time
from collections.abc import Mapping, Sequence

from agentlab.clock import Deadline
from agentlab.errors import DeadlineExceeded, Invalid, NotFound, Unavailable
from agentlab.hypervisor.base import ExecResult, GuestInterface, MachineSpec
from agentlab.hypervisor.guest_answers import READY, parse_interfaces, plain
from agentlab.hypervisor.proxmox.inventory import Found
from agentlab.hypervisor.proxmox.part import Part
from agentlab.hypervisor.proxmox.transport import NoSuchPid, NoSuchVM, NotRunning, Refused

# $0 is the name of this run: whoever comes second finds it taken and runs nothing.  One run of 256
# takes away the names of those that nobody can ask for any more.
_ONCE = (
    'umask 077; d=/run/agentlab/exec; n=$0; mkdir -p "$d"; '
    'case $n in 00*) find "$d" -mindepth 1 -maxdepth 1 -type d -mmin +60 '
    "-exec rmdir {} + 2>/dev/null ;; esac; "
    'mkdir "$d/$n" 2>/dev/null || { [ -d "$d/$n" ] && n="$n again"; echo "$n" >&2; exit 125; }; '
    'command -v -- "$1" >/dev/null 2>&1 || { echo "$n absent" >&2; exit 125; }; '
)
_RUN = _ONCE + 'exec "$@"'
_RUN_WITH_STDIN = (
    _ONCE + 'base64 -d >"$d/$n/in" && exec 3<"$d/$n/in" && rm -f "$d/$n/in" && exec "$@" <&3 3<&-'
)
# All or nothing, private from its first byte on: a reader sees the file whole or not at all.
_WRITE_PART = 'umask 077; cat >>"$1"'
_WRITE_LAST = (
    'umask 077; cat >>"$1" && [ "$(wc -c <"$1")" -eq "$4" ] && chmod "$3" "$1" '
    '&& mv -fT "$1" "$2" || { rm -f "$1"; exit 1; }'
)
# For ten seconds at most, in the guest itself: each question from outside costs it a program.
_AWAIT = 'n=0; until [ -e "$0" ]; do n=$((n + 1)); [ $n -le 40 ] || exit 1; sleep 0.25; done'
_WRITE_LIMIT = 64 << 10
_STDIN_LIMIT = 45_000  # bytes; 60,000 characters of base64, below the agent call's 64 KiB
_ANSWER = 15.0
_LOOK = 30.0  # for that, on a host that is overloaded
_FIRST_POLL, _SLOWEST_POLL = 0.05, 1.0


class ProxmoxGuest(Part):
    """Implements `base.Guest`."""

    def ready(self, vmid: int, spec: MachineSpec) -> bool:
        node, nic = self._node_of(vmid), spec.nic
        try:
            return any(
                interface.mac == nic.mac and nic.address.ip in interface.addresses
                for interface in self._interfaces(_path(node, vmid), vmid)
            ) and self._runner_is_up(node, vmid)
        except NoSuchVM:
            self._inventory.forget(vmid)
            return False
        except (Unavailable, NotRunning, Refused, DeadlineExceeded):
            return False

    def _runner_is_up(self, node: str, vmid: int) -> bool:
        """Whether the runner waits for its job; it makes this file when cloud-init is through.

        Not by `file-read`: Proxmox reads on until the agent says that the file is at its end, so
        that a hostile one keeps a worker of pvedaemon for ever (PVE/API2/Qemu/Agent.pm).
        """
        words, what = ["/bin/sh", "-c", _AWAIT, READY], f"cannot look into VM {vmid}"
        deadline = Deadline.after(_LOOK)
        started = self._begin_exec(node, vmid, words, "", what, deadline)
        return self._end_exec(_path(node, vmid), started, what, deadline).status == 0

    def ping(self, vmid: int) -> bool:
        path = _path(self._node_of(vmid), vmid)
        try:
            self._api.change(
                "POST", f"{path}/agent/ping", what=f"cannot ping the agent of VM {vmid}"
            )
        except (Unavailable, NotRunning, Refused):
            return False
        return True

    def interfaces(self, vmid: int) -> Sequence[GuestInterface]:
        return self._interfaces(_path(self._node_of(vmid), vmid), vmid)

    def _interfaces(self, path: str, vmid: int) -> Sequence[GuestInterface]:
        what = f"cannot read the interfaces of VM {vmid}"
        answer = self._api.get(f"{path}/agent/network-get-interfaces", what=what)
        return parse_interfaces(answer.get("result") if isinstance(answer, dict) else None)

    def file_write(
        self, vmid: int, path: str, content: bytes, *, owner: str, mode: int = 0o600
    ) -> None:
        if not path.startswith("/"):
            raise Invalid(f"cannot write {path!r} in the guest: not an absolute path")
        if len(content) > _WRITE_LIMIT:
            raise Invalid(f"cannot write {path} in the guest: more than {_WRITE_LIMIT} bytes")
        found = self._inventory.ours(vmid, owner, "write into")
        deadline = Deadline.after(60.0)
        new = f"{path}.{secrets.token_hex(6)}.new"
        first, last = content[:_STDIN_LIMIT], content[_STDIN_LIMIT:]
        if last:
            self._write(found, [_WRITE_PART, "sh", new], first, deadline, path)
        size = str(len(content))
        words = [_WRITE_LAST, "sh", new, path, f"{mode:o}", size]
        self._write(found, words, last or first, deadline, path)

    def _write(
        self, found: Found, words: Sequence[str], content: bytes, deadline: Deadline, path: str
    ) -> None:
        result = self._run(found, ["/bin/sh", "-c", *words], content, deadline)
        if result.status != 0:
            said = result.stderr.decode(errors="replace").strip()[-200:]
            raise Unavailable(f"cannot write {path} in VM {found.vmid}: {said}")

    def exec(
        self, vmid: int, argv: Sequence[str], *, owner: str, stdin: bytes = b"", timeout: float
    ) -> ExecResult:
        """At most 45,000 bytes of stdin.  An answer that was lost is Unavailable: it has run once."""
        if not argv:
            raise Invalid("cannot run nothing in the guest")
        if len(stdin) > _STDIN_LIMIT:
            raise Invalid(f"cannot give a program in the guest more than {_STDIN_LIMIT} bytes")
        found = self._inventory.ours(vmid, owner, "run a program in")
        return self._run(found, argv, stdin, Deadline.after(timeout))

    def _run(
        self, found: Found, argv: Sequence[str], stdin: bytes, deadline: Deadline
    ) -> ExecResult:
        name = secrets.token_hex(8)
        script = _RUN_WITH_STDIN if stdin else _RUN
        words = ["/bin/sh", "-c", script, name, *(plain(word) for word in argv)]
        text = base64.b64encode(stdin).decode()
        what = f"cannot run {argv[0]} in VM {found.vmid}"
        result = self._settled(lambda: self._once(found, words, text, what, deadline))
        said = result.stderr.decode(errors="replace").strip()
        if result.status == 125 and said == f"{name} again":
            raise Unavailable(f"{what}: it ran, and its answer was lost")
        if result.status == 125 and said == f"{name} absent":
            raise Unavailable(f"{what}: the guest has no such program")
        if result.status == 125 and said.endswith(name):
            raise Unavailable(f"{what}: the guest has no room in /run/agentlab")
        return result

    def _once(
        self, found: Found, words: Sequence[str], stdin: str, what: str, deadline: Deadline
    ) -> ExecResult:
        """Sent again after a lost reply: the script sees to it that nothing runs twice."""
        started = self._begin_exec(found.node, found.vmid, words, stdin, what, deadline)
        return self._end_exec(found.path, started, what, deadline)

    def _begin_exec(
        self, node: str, vmid: int, words: Sequence[str], stdin: str, what: str, deadline: Deadline
    ) -> ExecResult | int:
        with self._api.about(what):
            return self._api.transport.guest_exec(
                node, vmid, words, stdin, timeout=max(deadline.left, 1.0)
            )

    def _end_exec(
        self, path: str, started: ExecResult | int, what: str, deadline: Deadline
    ) -> ExecResult:
        if isinstance(started, ExecResult):
            return started
        path, pid, pause = f"{path}/agent/exec-status", started, _FIRST_POLL
        while True:
            try:
                # not `get`: its answer can be had once only, so it is not asked for again blindly
                with self._api.about(what):
                    answer = self._api.transport.call("GET", path, {"pid": pid}, timeout=_ANSWER)
            except NoSuchPid as told:
                raise Unavailable(f"{what}: it ran, and its answer was lost") from told
            except Unavailable:
                if deadline.passed:
                    raise
                answer = {}  # if that was the last word, the next question says so
            result = parse_exec(answer, what)
            if result is not None:
                return result
            if deadline.passed:
                raise DeadlineExceeded(f"{what}: it takes longer than it was given")
            time.sleep(min(pause, max(deadline.left, 0.01)))
            pause = min(pause * 1.5, _SLOWEST_POLL)

    def _node_of(self, vmid: int) -> str:
        node = self._inventory.node_of(vmid)
        if node is None:
            raise NotFound(f"cannot talk to VM {vmid}: there is no such VM")
        return node


def _path(node: str, vmid: int) -> str:
    return f"/nodes/{node}/qemu/{vmid}"


def parse_exec(answer: object, what: str) -> ExecResult | None:
    """The `data` of `exec-status`; None while the program runs.

    A program that a signal ended has the signal's number, negative.
    """
    if not isinstance(answer, Mapping):
        raise Unavailable(f"{what}: Proxmox gave a status that is no mapping")
    if str(answer.get("exited", 0)) not in ("1", "True"):
        return None
    status, signal = answer.get("exitcode"), answer.get("signal")
    with contextlib.suppress(TypeError, ValueError):
        return ExecResult(
            status=-int(str(signal)) if status is None else int(str(status)),
            stdout=decode_output(answer.get("out-data")),
            stderr=decode_output(answer.get("err-data")),
            truncated=any(
                str(answer.get(f"{name}-truncated", 0)) in ("1", "True") for name in ("out", "err")
            ),
        )
    raise Unavailable(f"{what}: the guest agent gave an exit status that is no number")


def decode_output(text: object) -> bytes:
    """Bytes of a guest's output.

    Proxmox decodes the agent's base64 into a Perl string of bytes (PVE/API2/Qemu/Agent.pm), and
    its JSON shows each byte as the character of that number; anything else was text already.
    """
    if not isinstance(text, str):
        return b""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode(errors="replace")

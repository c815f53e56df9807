"""The client of qemu-guest-agent.  The guest may be hostile: every answer is bounded and checked."""

from __future__ import annotations

import base64
import contextlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentlab.clock import Deadline
from agentlab.errors import Busy, DeadlineExceeded, Invalid, Unavailable
from agentlab.hypervisor.base import ExecResult, GuestInterface
from agentlab.hypervisor.files import locked
from agentlab.hypervisor.guest_answers import parse_interfaces, plain
from agentlab.hypervisor.local.channel import Channel, connect, decode, encode
from agentlab.log import one_line

SOCKET = "ga"
_LOCK = "ga.lock"
_WRITE_LIMIT = 64 << 10
_READ_LIMIT = 64 << 10
_MARK = b"\xff"  # precedes the answer to guest-sync-delimited and is in no JSON text

# All or nothing, private from its first byte on: a reader sees the file whole or not at all.
_WRITE = (
    'umask 077; t="$1.$$.new"; cat >"$t" && [ "$(wc -c <"$t")" -eq "$3" ] && chmod "$2" "$t" '
    '&& mv -fT "$t" "$1" || { rm -f "$t"; exit 1; }'
)


class AgentRefused(Unavailable):
    """The agent answered with an error: no such file, no such command, not now."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A channel that is in step with the agent: one answer for each request."""

    channel: Channel

    def call(self, command: str, timeout: float, **arguments: object) -> object:
        """One command; an underscore in an argument's name stands for a hyphen."""
        deadline = Deadline.after(timeout)
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.channel.send(encode(command, named), deadline)
        answer = decode(self.channel.receive(deadline), self.channel.peer)
        if "return" in answer:
            return answer["return"]
        error = answer.get("error")
        text = str(error.get("desc", "")) if isinstance(error, dict) else "an answer of no kind"
        raise AgentRefused(f"{self.channel.peer} refused {command}: {one_line(text)[:200]}")


def synchronise(channel: Channel, timeout: float) -> Conversation:
    """Throws away what is left of earlier conversations; asks again each second.

    A request that comes before the agent has opened its port is lost, so one is not enough.
    """
    deadline = Deadline.after(timeout)
    while True:
        token = random.randrange(1, 1 << 31)  # noqa: S311 - tells answers apart, no secret
        request = encode("guest-sync-delimited", {"id": token})
        channel.send(_MARK + request, deadline)
        round_ends = Deadline.after(min(1.0, deadline.left))
        try:
            while True:
                before, mark, after = channel.receive(round_ends).rpartition(_MARK)
                del before
                if mark and decode(after, channel.peer).get("return") == token:
                    return Conversation(channel)
        except DeadlineExceeded:
            if deadline.passed:
                raise


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent of the machine in `directory`; one conversation at a time, across processes too."""

    directory: Path

    @contextlib.contextmanager
    def converse(self, timeout: float) -> Iterator[Conversation]:
        peer = f"the guest agent of {self.directory.name}"
        if not self.directory.is_dir():
            raise Unavailable(f"{peer} is gone: no such machine")
        deadline = Deadline.after(timeout)
        with (
            locked(self.directory / _LOCK, timeout=timeout, what=peer),
            connect(self.directory, SOCKET, timeout) as connection,
        ):
            yield synchronise(Channel(connection, peer), max(deadline.left, 0.05))

    def ping(self, timeout: float) -> bool:
        try:
            with self.converse(timeout) as agent:
                agent.call("guest-ping", timeout)
        except (Unavailable, DeadlineExceeded, Busy):
            return False
        return True

    def power_off(self, timeout: float) -> None:
        """Asks for a clean end and does not wait for it.

        Not by guest-shutdown: that calls shutdown(8), which needs a logind that we do without.
        """
        with self.converse(timeout) as agent:
            argv = ["poweroff", "--no-block"]
            agent.call("guest-exec", timeout, path="/bin/systemctl", arg=argv)

    def read(self, path: str, timeout: float, limit: int = _READ_LIMIT) -> bytes | None:
        """The head of a file, at most `limit` bytes; None when it cannot be opened."""
        with self.converse(timeout) as agent:
            return _read(agent, path, timeout, limit)

    def wait_for(self, path: str, content: bytes, wait: float, timeout: float) -> bool:
        """Whether the file holds just that (but for white space) before `wait` is over.

        `timeout` is for each answer of the agent.
        Asks rarely: every question takes CPU from the guest that is to bring the answer about.
        """
        deadline = Deadline.after(wait)
        pause = 0.2
        with self.converse(timeout) as agent:
            while (_read(agent, path, timeout, _READ_LIMIT) or b"").strip() != content:
                if deadline.passed:
                    return False
                time.sleep(min(pause, max(deadline.left, 0.001)))
                pause *= 1.5
        return True

    def write(self, path: str, content: bytes, mode: int, timeout: float) -> None:
        """Replaces a small file whole."""
        if len(content) > _WRITE_LIMIT:
            raise Invalid(f"cannot write {path} in the guest: more than {_WRITE_LIMIT} bytes")
        argv = ["/bin/sh", "-c", _WRITE, "sh", path, f"{mode:o}", str(len(content))]
        result = self.run(argv, content, timeout)
        if result.status != 0:
            said = one_line(result.stderr.decode(errors="replace").strip())[-200:]
            raise Unavailable(f"cannot write {path} in the guest: {said}")

    def run(self, argv: Sequence[str], stdin: bytes, timeout: float) -> ExecResult:
        """Runs a program to its end; polls fast at first."""
        deadline = Deadline.after(timeout)
        request: dict[str, object] = {
            "path": plain(argv[0]),
            "arg": [plain(word) for word in argv[1:]],
            "capture_output": True,
        }
        if stdin:
            request["input_data"] = base64.b64encode(stdin).decode()
        with self.converse(timeout) as agent:
            pid = _object(agent.call("guest-exec", timeout, **request), "exec").get("pid")
        if not isinstance(pid, int):
            raise Unavailable(f"the guest agent of {self.directory.name} gave a pid that is none")
        pause = 0.03
        while True:
            with self.converse(max(deadline.left, 1.0)) as agent:
                answer = agent.call("guest-exec-status", max(deadline.left, 1.0), pid=pid)
            result = parse_exec_status(_object(answer, "exec status"))
            if result is not None:
                return result
            if deadline.passed:
                raise DeadlineExceeded(f"{argv[0]} in the guest took longer than {timeout:g} s")
            time.sleep(min(pause, deadline.left))
            pause = min(pause * 1.5, 1.0)

    def interfaces(self, timeout: float) -> tuple[GuestInterface, ...]:
        with self.converse(timeout) as agent:
            return parse_interfaces(agent.call("guest-network-get-interfaces", timeout))


def _read(agent: Conversation, path: str, timeout: float, limit: int) -> bytes | None:
    try:
        handle = agent.call("guest-file-open", timeout, path=plain(path), mode="r")
    except AgentRefused:
        return None
    if not isinstance(handle, int):
        raise Unavailable(f"{agent.channel.peer} gave a handle that is no number")
    try:
        answer = agent.call("guest-file-read", timeout, handle=handle, count=limit)
    finally:
        with contextlib.suppress(AgentRefused):
            agent.call("guest-file-close", timeout, handle=handle)
    return _decoded(_object(answer, "file read"), "buf-b64")[:limit]


def parse_exec_status(answer: Mapping[str, object]) -> ExecResult | None:
    """None while it runs.  A program that a signal ended has the signal's number, negative."""
    if answer.get("exited") is not True:
        return None
    status, signal = answer.get("exitcode"), answer.get("signal")
    if isinstance(signal, int) and not isinstance(signal, bool) and status is None:
        status = -signal
    if not isinstance(status, int) or isinstance(status, bool):
        raise Unavailable("the guest agent gave an exit status that is no number")
    return ExecResult(
        status=status,
        stdout=_decoded(answer, "out-data"),
        stderr=_decoded(answer, "err-data"),
        truncated=answer.get("out-truncated") is True or answer.get("err-truncated") is True,
    )


def _object(answer: object, what: str) -> Mapping[str, object]:
    if not isinstance(answer, dict):
        raise Unavailable(f"the guest agent gave an answer to {what} that is no object")
    return answer


def _decoded(
    answer: Mapping[str, object], key: Literal["buf-b64", "out-data", "err-data"]
) -> bytes:
    text = answer.get(key, "")
    try:
        return base64.b64decode(text if isinstance(text, str) else "", validate=True)
    except ValueError as error:  # binascii.Error is one, and so is text that is not ASCII
        raise Unavailable(f"the guest agent gave {key} that is not base64") from error

"""The QEMU machine protocol: one short conversation with one QEMU at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentlab.clock import Deadline
from agentlab.errors import Conflict, Unavailable
from agentlab.hypervisor.files import locked
from agentlab.hypervisor.local.channel import Channel, connect, decode, encode
from agentlab.log import one_line

SOCKET = "qmp"
_LOCK = "qmp.lock"


class QmpRefused(Conflict):
    """QEMU understood a command and did not do it."""


@dataclass(frozen=True, slots=True)
class Qmp:
    """A connection past its greeting."""

    channel: Channel

    def execute(
        self,
        command: str,
        timeout: float = 10.0,
        lent: Sequence[int] = (),
        **arguments: object,
    ) -> object:
        """Runs one command and gives what it returned; events are passed over.

        An underscore in an argument's name stands for the hyphen that QMP has there.
        `lent` are open files that the command takes.
        """
        deadline = Deadline.after(timeout)
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.channel.send(encode(command, named), deadline, lent)
        while True:
            answer = decode(self.channel.receive(deadline), self.channel.peer)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                error = answer["error"]
                text = str(error.get("desc", "")) if isinstance(error, dict) else ""
                raise QmpRefused(f"{self.channel.peer} refused {command}: {one_line(text)[:500]}")

    def status(self) -> str:
        """The run state: `running`, `paused`, `inmigrate`, `prelaunch`, `io-error` and others."""
        answer = self.execute("query-status", timeout=5.0)
        if not isinstance(answer, dict) or not isinstance(answer.get("status"), str):
            raise Unavailable(f"{self.channel.peer} gave no run state")
        return str(answer["status"])

    def console(self) -> str:
        """The last 64 KiB that the guest wrote to its serial console."""
        answer = self.execute("ringbuf-read", device="console", size=65536)
        return answer if isinstance(answer, str) else ""


def greet(channel: Channel, deadline: Deadline) -> Qmp:
    """Does the handshake on a fresh connection."""
    if "QMP" not in decode(channel.receive(deadline), channel.peer):
        raise Unavailable(f"{channel.peer} did not greet as QMP does")
    qmp = Qmp(channel)
    qmp.execute("qmp_capabilities", timeout=max(deadline.left, 0.001))
    return qmp


@contextlib.contextmanager
def open_qmp(directory: Path, *, timeout: float = 5.0) -> Iterator[Qmp]:
    """Connects to the QEMU of a machine directory; QEMU takes one client at a time, so we queue.

    Raises Unavailable when no QEMU listens there.
    """
    deadline = Deadline.after(timeout)
    peer = f"QEMU in {directory.name}"
    with (
        locked(directory / _LOCK, timeout=timeout, what=peer),
        connect(directory, SOCKET, timeout) as connection,
    ):
        yield greet(Channel(connection, peer), deadline)

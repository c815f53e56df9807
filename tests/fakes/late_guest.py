"""A QEMU that is not there, with a guest whose agent is late: a process, and what its sockets say."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import AF_UNIX, socket
from typing import IO

from agentlab.hypervisor.local.process import PIDFILE


@dataclass
class LateGuest:
    """It hangs up on the first `late` who ask its agent, and ends when the next one runs a program.

    `told` is what came in: commands of the monitor, and the programs that the agent ran.
    """

    process: subprocess.Popen[bytes]
    late: int
    told: list[str] = field(default_factory=list)

    def monitor(self, stream: IO[bytes]) -> None:
        stream.write(b'{"QMP": {}}\n')
        for line in stream:
            self.told.append(json.loads(line)["execute"])
            stream.write(b'{"return": {"status": "running"}}\n')

    def agent(self, stream: IO[bytes]) -> None:
        self.late -= 1
        if self.late >= 0:
            return
        for line in stream:
            asked = json.loads(line.lstrip(b"\xff"))["arguments"]
            if "id" in asked:
                stream.write(b'\xff{"return": %d}\n' % asked["id"])
            else:
                self.told.append(" ".join([asked["path"], *asked["arg"]]))
                stream.write(b'{"return": {"pid": 7}}\n')
                self.process.communicate()


@contextmanager
def late_guest(directory: Path, uuid: str, late: int) -> Iterator[LateGuest]:
    """Has the pid file and the sockets of a machine's directory for as long as the body takes."""
    argv = ["sh", "-c", "read -r _", "sh", "-uuid", uuid]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as process, ExitStack() as sockets:
        (directory / PIDFILE).write_text(str(process.pid))
        guest = LateGuest(process, late)
        for name, play in (("qmp", guest.monitor), ("ga", guest.agent)):
            listener = sockets.enter_context(socket(AF_UNIX))
            listener.bind(str(directory / name))
            listener.listen()
            threading.Thread(target=_serve, args=(listener, play), daemon=True).start()
        yield guest


def _serve(listener: socket, play: Callable[[IO[bytes]], None]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # closed
        with connection, connection.makefile("rwb", buffering=0) as stream:
            play(stream)

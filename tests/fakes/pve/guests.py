"""Guests that are not there: what their agent would say.  And the agent's own rules."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import itertools
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from fakepve import agent as fake_agent
from fakepve.model import FakeVm, PveError
from fakepve.server import API, USER, params

Run = Callable[[int, list[str], str], tuple[int, str, str]]
READY = "/run/agentlab/ready"
SILENT = "QEMU guest agent is not running"
NO_PID = "Agent error: Invalid parameter 'pid'"


def nothing_to_do(vmid: int, argv: list[str], stdin: str) -> tuple[int, str, str]:
    return 0, "", ""


@dataclass
class _Process:
    done: bool = False
    status: int = 0
    out: str = ""
    err: str = ""


@dataclass
class SimulatedGuests:
    """Answers as the agents of guests that boot in `boot_secs` PVE seconds.

    `run` plays every program that is not `missing`: (vmid, argv, stdin) gives (exit status, stdout,
    stderr).  It is called in a thread and may take its time.  `files` holds what file-read finds,
    by (vmid, path); `silent` the guests whose agent is dead, `starting` those whose runner does not
    wait yet.  `interfaces` adds interfaces to every guest (docker0, …).
    """

    boot_secs: float = 0.0
    run: Run = nothing_to_do
    missing: set[str] = field(default_factory=set)
    files: dict[tuple[int, str], bytes] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)
    starting: set[int] = field(default_factory=set)
    interfaces: list[dict[str, Any]] = field(default_factory=list)
    programs: list[tuple[int, list[str], str]] = field(default_factory=list)
    _processes: dict[tuple[int, int], _Process] = field(default_factory=dict)
    _pids: Any = field(default_factory=lambda: itertools.count(100))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_up(self, vm: FakeVm, scale: float) -> bool:
        """Whether the agent answers: it has power, is not paused, and has had the time to boot."""
        since = getattr(vm, "booted_at", None)
        return (
            vm.status == "running"
            and vm.qmpstatus == "running"
            and vm.vmid not in self.silent
            and since is not None
            and time.monotonic() - since >= self.boot_secs * scale
        )

    def forget(self, vmid: int) -> None:
        """The machine has lost its power: what was in its memory is gone."""
        with self._lock:
            for key in [key for key in self._processes if key[0] == vmid]:
                del self._processes[key]
            for key in [key for key in self.files if key[0] == vmid and key[1].startswith("/run/")]:
                del self.files[key]

    def quiet(self) -> bool:
        """Whether all programs have ended."""
        with self._lock:
            return all(process.done for process in self._processes.values())

    def answer(self, vm: FakeVm, command: str, values: dict[str, Any]) -> Any:
        """What the API gives as `data` for an agent command; called in a thread."""
        match command:
            case "exec":
                return self._exec(vm, values)
            case "exec-status":
                return self._exec_status(vm, int(values["pid"]))
            case "file-read":
                return self._file_read(vm, values["file"])
            case "file-write":
                return self._file_write(vm, values)
            case "network-get-interfaces":
                return {"result": [*interfaces_of(vm), *self.interfaces]}
            case "ping":
                return {"result": {}}
            case _:
                vm.agent = vm.agent or {}
                return fake_agent.result(vm, command, values)

    def _exec(self, vm: FakeVm, values: dict[str, Any]) -> dict[str, int]:
        argv = values["command"]
        argv = [argv] if isinstance(argv, str) else [str(word) for word in argv]
        stdin = str(values.get("input-data") or "")
        process = _Process()
        with self._lock:
            self.programs.append((vm.vmid, argv, stdin))
        if argv[0] in self.missing:
            raise MissingProgram(argv[0])

        def work() -> None:
            try:
                if argv[-1] == READY:
                    process.status = 1 if vm.vmid in self.starting else 0
                else:
                    process.status, process.out, process.err = self.run(vm.vmid, argv, stdin)
            except BaseException as error:  # noqa: BLE001 - told as a crash of the program
                process.status, process.err = 128, repr(error)
            process.done = True

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(0.02)  # a short one has ended when its number is told
        with self._lock:
            pid = next(self._pids)
            self._processes[(vm.vmid, pid)] = process
        return {"pid": pid}

    def _exec_status(self, vm: FakeVm, pid: int) -> dict[str, Any]:
        """Readable once after the end (322 to 328)."""
        with self._lock:
            process = self._processes.get((vm.vmid, pid))
            if process is None:
                raise PveError(500, NO_PID)
            if not process.done:
                return {"exited": 0}
            del self._processes[(vm.vmid, pid)]
        status: dict[str, Any] = {"exited": 1, "exitcode": process.status}
        if process.out:
            status.update({"out-data": process.out, "out-truncated": 0})
        if process.err:
            status.update({"err-data": process.err, "err-truncated": 0})
        return status

    def _file_read(self, vm: FakeVm, path: str) -> dict[str, Any]:
        """345 and 346."""
        content = self.files.get((vm.vmid, path))
        if content is None:
            said = f"failed to open file '{path}' (mode: 'r'): No such file or directory"
            raise PveError(500, f"Agent error: {said}")
        return {"bytes-read": len(content), "content": content.decode("latin-1")}

    def _file_write(self, vm: FakeVm, values: dict[str, Any]) -> None:
        content = str(values["content"])
        if not content.isascii():
            raise PveError(500, "Wide character in subroutine entry")
        data = content.encode()
        if str(values.get("encode", "1")) in ("0", "False", "false"):
            data = base64.b64decode(data)
        self.files[(vm.vmid, values["file"])] = data


class MissingProgram(Exception):
    """The agent could not start it."""


def interfaces_of(vm: FakeVm) -> list[dict[str, Any]]:
    """lo, and one interface for each netN, with its MAC and the address of ipconfigN."""
    found = [_interface("lo", "00:00:00:00:00:00", "127.0.0.1/8")]
    for number in range(4):
        net = str(vm.config.get(f"net{number}", ""))
        mac = re.search(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}", net)
        if mac is None:
            continue
        given = dict(
            part.partition("=")[::2]
            for part in str(vm.config.get(f"ipconfig{number}", "")).split(",")
        )
        address = given.get("ip", "dhcp")
        if address == "dhcp":
            address = f"192.0.2.{2 + vm.vmid % 250}/24"
        found.append(_interface(f"eth{number}", mac.group().lower(), address))
    return found


def _interface(name: str, mac: str, address: str) -> dict[str, Any]:
    where = ipaddress.ip_interface(address)
    return {
        "name": name,
        "hardware-address": mac,
        "ip-addresses": [
            {
                "ip-address": str(where.ip),
                "ip-address-type": f"ipv{where.version}",
                "prefix": where.network.prefixlen,
            }
        ],
        "statistics": {
            f"{way}-{what}": 0
            for way in ("rx", "tx")
            for what in ("bytes", "dropped", "errs", "packets")
        },
    }


class Agents:
    """Part of ProxmoxNode: who may ask a guest's agent what, and how it fails."""

    guests: SimulatedGuests | None

    def agent_is_up(self, vm: FakeVm) -> bool:
        """Whether the agent answers now.  Override it together with `agent_call`."""
        return self.guests is not None and self.guests.is_up(vm, self.time_scale)

    def agent_call(self, vm: FakeVm, command: str, values: dict[str, Any]) -> Any:
        """The `data` of an agent command of a guest that answers.  Called in a thread; may block.

        It raises PveError for Proxmox's words, MissingProgram for an exec without a program.
        """
        if self.guests is None:
            raise PveError(500, SILENT)
        return self.guests.answer(vm, command, values)

    async def _agent(self, request: web.Request) -> web.Response:
        match = self.resolve(request, API)
        data = await self.answer(
            request, match, await params(request), request[USER], self._agent_call
        )
        return web.json_response({"data": data})

    async def _agent_call(self, match: Any, values: dict[str, Any]) -> Any:
        """Not there (109), not running (426), no agent (971), silent for 3 s (307)."""
        vm = self.find(values["node"], values["vmid"])
        command = match.template.rsplit("/", 1)[1]
        if vm.status != "running":
            raise PveError(500, f"VM {vm.vmid} is not running")
        if not has_agent(vm):
            raise PveError(500, "No QEMU guest agent configured")
        if len(str(values.get("content", ""))) > 61440:
            raise PveError(
                400,
                "Parameter verification failed.",
                {"content": "value may only be 61440 characters long"},
            )
        if not await self.blocking(self.agent_is_up, vm):
            await self.pause(3)
            raise PveError(500, SILENT)
        vm.agent = vm.agent or {}
        fake_agent.record(vm, command, {k: v for k, v in values.items() if k != "content"})
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self.executor, self.agent_call, vm, command, values
            )
        except MissingProgram as missing:
            if self.in_foreground():
                # 237: the command line says it, the server's worker falls over its quotes (334)
                raise PveError(
                    500,
                    "Agent error: Guest agent command failed, error was 'Failed to execute child "
                    f"process “{missing}” (No such file or directory)'",
                ) from None
            await self.pause(5)
            raise PveError(596, "Broken pipe") from None


def has_agent(vm: FakeVm) -> bool:
    words = str(vm.config.get("agent", "0")).split(",")
    return words[0] in ("1", "enabled=1") or "enabled=1" in words

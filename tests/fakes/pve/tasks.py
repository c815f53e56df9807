"""Tasks as Proxmox runs them: UPIDs, logs, how they end, how they are killed, how they are listed.

The ids in brackets name recordings of Proxmox's own programs (tests/data/proxmox/).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from fakepve.model import FakeVm, PveError, TaskError
from fakepve.routing import split_list
from fakepve.server import USER, params

Record = dict[str, Any]
Body = Callable[[], Awaitable[str | None]]

RECORD: ContextVar[Record | None] = ContextVar("the task that this code runs in", default=None)
SPOKEN: ContextVar[list[tuple[str, str]] | None] = ContextVar("what a call prints", default=None)
STARTED: ContextVar[list[str] | None] = ContextVar("the tasks that a call started", default=None)

_MISTAKES = (TypeError, AttributeError, NameError, LookupError, AssertionError)
# What a task takes, in PVE seconds: the medians of tests with Proxmox's own programs.
SECONDS = {
    "qmclone": 0.46,
    "qmclone full": 0.77,
    "qmdestroy": 0.30,
    "qmsnapshot": 0.35,
    "qmdelsnapshot": 0.35,
    "qmrollback": 0.35,
    "qmstart": 1.2,
    "qmstop": 0.3,
    "resize": 0.1,
    "imgdel": 0.1,
}


@dataclass
class TaskFault:
    type: str
    text: str
    times: int
    of: str = ""  # "" for any
    late: bool = False


class Tasks:
    """Part of ProxmoxNode: a FakePve whose tasks can be killed, and fail when told to."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds = dict(SECONDS)
        self.task_faults: list[TaskFault] = []
        self.mistakes: list[str] = []  # of ours, which a task's failure would hide
        self._running: dict[str, asyncio.Task[None]] = {}

    def say(self, line: str) -> None:
        """A line of the worker: into the task's log, or to the screen of a call in the foreground."""
        record, spoken = RECORD.get(), SPOKEN.get()
        if record is not None:
            record["log"].append(line)
        elif spoken is not None:
            spoken.append(("out", line))

    def warn(self, line: str) -> None:
        record, spoken = RECORD.get(), SPOKEN.get()
        if record is not None:
            record["log"].append(line)
        elif spoken is not None:
            spoken.append(("err", line))

    async def takes(self, kind: str) -> None:
        """What the storage does: locks are set by now."""
        await self.pause(self.seconds.get(kind, 0.0))
        record = RECORD.get()
        if record is not None:
            self._fail_as_told(record, late=True)

    # ------------------------------------------------------------------------- to run

    async def task(
        self,
        node: str,
        ttype: str,
        tid: object,
        user: str,
        body: Body,
        vm: FakeVm | None = None,
        lock: bool = True,
        log: tuple[str, ...] = (),
    ) -> str:
        """Starts a task; its UPID.  Where time_scale is 0 the task has ended when this returns.

        The log of a failure ends with `TASK ERROR: …` only (108).
        """
        upid, pid, start = self._upid(node, ttype, tid, user)
        record = {
            "upid": upid, "node": node, "pid": pid, "pstart": pid * 7, "starttime": start,
            "type": ttype, "id": str(tid), "user": user, "status": "running", "log": [],
        }  # fmt: skip
        self.tasks[upid] = record
        self.tasklog.append(record)
        started = STARTED.get()
        if started is not None:
            started.append(upid)
        locked = vm if lock else None
        running = asyncio.ensure_future(self._run_task(record, body, locked))
        self._running[upid] = running
        running.add_done_callback(lambda _done: self._running.pop(upid, None))
        if not self.time_scale:
            await asyncio.wait({running})
        return upid

    async def _run_task(self, record: Record, body: Body, vm: FakeVm | None) -> None:
        RECORD.set(record)
        upid = record["upid"]
        status, ending = "OK", True
        try:
            self._fail_as_told(record)
            if vm is not None:
                await self.acquire(vm, upid)
            try:
                note = await body()
                if note:
                    record["log"] += str(note).splitlines()
            finally:
                if vm is not None:
                    self.release(vm, upid)
        except TaskError as error:
            status = str(error)
        except PveError as error:
            status = error.message
        except asyncio.CancelledError:
            status = record.get("ended_by", "unexpected status")
            ending = "ended_by" in record
        except Exception as error:  # noqa: BLE001 - a hook's failure is the task's
            logging.getLogger(__name__).warning("task %s: %r", upid, error)
            status = f"{type(error).__name__}: {error}".splitlines()[0]
            if isinstance(error, _MISTAKES):
                self.mistakes.append(f"{record['type']}: {status}")
        if ending:
            record["log"].append("TASK OK" if status == "OK" else f"TASK ERROR: {status}")
        record.update(status="stopped", exitstatus=status, endtime=int(time.time()))

    def _fail_as_told(self, record: Record, *, late: bool = False) -> None:
        for fault in self.task_faults:
            meant = fault.type == record["type"] and fault.of in ("", record["id"])
            if meant and fault.late == late and fault.times > 0:
                fault.times -= 1
                raise TaskError(fault.text)

    def fail_tasks(
        self, task_type: str, text: str, times: int = 1, *, of: str = "", late: bool = False
    ) -> TaskFault:
        """The next tasks of this type (`qmclone`, …) do nothing and end with this text.

        `of` narrows to those of one machine, by its VMID; a clone's is that of its template.
        `late`: they fail on the storage, with what they have locked and written by then.
        """
        fault = TaskFault(task_type, text, times, of, late)
        self.task_faults.append(fault)
        return fault

    def kill_task(self, upid: str) -> None:
        """Kills the worker hard: nothing is cleaned up, and it ends with "unexpected status" (866)."""
        running = self._running.get(upid)
        if running is not None:
            running.cancel()

    def running_tasks(self, task_type: str | None = None) -> list[str]:
        return [upid for upid in self._running if task_type in (None, self.tasks[upid]["type"])]

    # ------------------------------------------------------------------------- over HTTP

    def _routes_zz_tasks(self) -> list[tuple[str, str, Any]]:
        return [("DELETE", "/nodes/{node}/tasks/{upid}", self._task_stop)]

    async def _task_stop(self, values: dict[str, Any], user: str) -> None:
        """Stops a task: the worker gets a signal and cleans up (859 to 864, 489 and 490)."""
        task = self._known_task(values["node"], values["upid"])
        if not self._task_owner(user, task):
            self.require(user, "/nodes/" + task["node"], "Sys.Modify")
        running = self._running.get(task["upid"])
        if running is None:
            return
        words = "interrupted by signal"
        if task["type"] == "qmclone":
            words = "clone failed: " + words
        elif task["type"] == "qmshutdown":
            words = "VM quit/powerdown failed"
        task["ended_by"] = words
        running.cancel()
        await asyncio.wait({running})

    def _known_task(self, node: str, upid: str) -> Record:
        """An unknown UPID is a 400 about the field `upid` (517, 518; on a command line 538)."""
        if not upid.startswith("UPID:") or upid.count(":") != 8:
            raise _bad("upid", "unable to parse worker upid")
        task = self.tasks.get(upid)
        if task is None or task["node"] != node:
            raise _bad("upid", "no such task")
        return task

    def _get_task(self, request: web.Request) -> Record:
        task = self._known_task(request.match_info["node"], request.match_info["upid"])
        if not self._task_owner(request[USER], task):
            self.require(request[USER], "/nodes/" + task["node"], "Sys.Audit")
        return task

    def _task_view(self, task: Record, listing: bool = False) -> Record:
        """`user` and `tokenid` apart (229); running ones are RUNNING in a list (839)."""
        view = {key: value for key, value in task.items() if key not in ("log", "ended_by")}
        running = task["status"] == "running"
        if not (listing and running):
            user, _, token = task["user"].partition("!")
            view["user"] = user
            if token:
                view["tokenid"] = token
        if listing:
            view["status"] = "RUNNING" if running else view.pop("exitstatus")
            view["saved"] = "0" if running else "1"
        else:
            view.pop("endtime", None)
        return view

    async def _task_list(self, request: web.Request) -> web.Response:
        """`source`, `typefilter`, `statusfilter`, `since`, `vmid`, `errors`… (477, 478, 514 to 516)."""
        node, user = request.match_info["node"], request[USER]
        asked = self._verify(request, await params(request))
        audit = self.allowed(user, "/nodes/" + node, "Sys.Audit")
        source = asked.get("source", "archive")
        found = []
        for task in reversed(self.tasklog):
            running = task["status"] == "running"
            failed = not running and task["exitstatus"] != "OK"
            if task["node"] != node or not (audit or self._task_owner(user, task)):
                continue
            if (source == "active" and not running) or (source == "archive" and running):
                continue
            if asked.get("vmid") is not None and task["id"] != str(asked["vmid"]):
                continue
            if asked.get("typefilter") and task["type"] != asked["typefilter"]:
                continue
            if asked.get("userfilter") and asked["userfilter"] not in task["user"]:
                continue
            if asked.get("since") and task["starttime"] < int(asked["since"]):
                continue
            if asked.get("until") and task["starttime"] > int(asked["until"]):
                continue
            if str(asked.get("errors", "0")) == "1" and not failed:
                continue
            wanted = split_list(asked.get("statusfilter"))
            if wanted and ("error" if failed else "ok") not in wanted:
                continue
            found.append(self._task_view(task, listing=True))
        found.sort(key=lambda task: -task["starttime"])
        start = int(asked.get("start", 0))
        shown = found[start : start + int(asked.get("limit", 50))]
        return web.json_response({"data": shown, "total": len(found)})

    async def _task_log(self, request: web.Request) -> web.Response:
        asked = self._verify(request, await params(request))
        lines = self._get_task(request)["log"]
        numbered = [{"n": n, "t": text} for n, text in enumerate(lines, 1)]
        start = int(asked.get("start", 0))
        shown = numbered[start : start + (int(asked.get("limit", 50)) or len(numbered))]
        return web.json_response({"data": shown, "total": len(numbered)})


def _bad(field: str, text: str) -> PveError:
    return PveError(400, "Parameter verification failed.", {field: text})

"""The small daemon's workspaces and sessions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from agentlab.api import messages as m
from agentlab.errors import Conflict, NotFound
from agentlab.model.ids import unknown


def workspace_view(name: str = "data", state: str = "DETACHED", **changes: Any) -> m.WorkspaceView:
    attached = state == "ATTACHED"
    view = m.WorkspaceView(
        name=name, state=state, size=20480, storage="local", volid=f"local:vm-9000-{name}",
        number=9000, formatted=True, origin="", vmid=1003 if attached else 0,
        sandbox="box-1003" if attached else "", session="",
        lease_until=4e9 if attached else 0.0, stale=False, created=1.0, changed=2.0,
    )  # fmt: skip
    return dataclasses.replace(view, **changes)


def session_view(name: str = "fix", state: str = "STOPPED", **changes: Any) -> m.SessionView:
    running = state == "RUNNING"
    view = m.SessionView(
        name=name, state=state, workspace=name, profile="demo", origin="", repo="", branch="",
        vmid=1003 if running else 0, sandbox="box-1003" if running else "", job="", created=1.0,
        changed=2.0,
    )  # fmt: skip
    return dataclasses.replace(view, **changes)


class WorkHandlers:
    """One method for each row of the endpoint table that is about them."""

    w: Any  # the World
    _once: Callable[..., m.OperationView]
    _operation: Callable[..., m.OperationView]

    # --- workspaces ---

    def workspace_list(self, *_: Any) -> m.WorkspaceList:
        return m.WorkspaceList(list(self.w.workspaces.values()))

    def workspace_show(self, _r: Any, path: dict[str, str], *_: Any) -> m.WorkspaceView:
        found = self.w.workspaces.get(path["name"])
        if found is None:
            raise unknown("workspace", path["name"], self.w.workspaces)
        assert isinstance(found, m.WorkspaceView)
        return found

    def workspace_create(
        self, request: m.WorkspaceRequest, _p: Any, _q: Any, headers: Any
    ) -> m.OperationView:
        new = workspace_view(request.name, size=request.size or 20480, formatted=False)
        return self._new(new, "create", request, headers)

    def _new(
        self, view: m.WorkspaceView, verb: str, request: object, headers: Any
    ) -> m.OperationView:
        def act() -> m.OperationView:
            if view.name in self.w.workspaces:
                raise Conflict(f"cannot make workspace {view.name}: there is one of that name")
            self.w.asked.append(request)
            if f"workspace.{verb}" not in self.w.fails:
                self.w.workspaces[view.name] = view
            return self._operation(f"workspace.{verb}")

        return self._once(headers, act)

    def workspace_attach(self, request: m.AttachRequest, *call: Any) -> m.OperationView:
        return self._worked("attach", request, *call, vmid=1003, state="ATTACHED")

    def workspace_detach(self, request: m.DetachRequest, *call: Any) -> m.OperationView:
        return self._worked("detach", request, *call, state="DETACHED")

    def workspace_check(self, _r: Any, path: dict[str, str], *_: Any) -> m.WorkspaceCheckView:
        self.workspace_show(None, path)
        return m.WorkspaceCheckView(path["name"], self.w.findings)

    def workspace_fsck(self, request: m.FsckRequest, *call: Any) -> m.OperationView:
        return self._detached("check the file system of", "fsck", request, *call)

    def workspace_rebind(self, request: m.RebindRequest, *call: Any) -> m.OperationView:
        return self._worked("rebind", request, *call, vmid=1003, state="ATTACHED")

    def workspace_fork(
        self, request: m.ForkRequest, path: dict[str, str], _q: Any, headers: Any
    ) -> m.OperationView:
        source = self.workspace_show(None, path)
        new = dataclasses.replace(source, name=request.name, origin=source.name)
        return self._new(new, "fork", request, headers)

    def workspace_resize(self, request: m.ResizeRequest, *call: Any) -> m.OperationView:
        return self._detached("resize", "resize", request, *call, size=request.size)

    def workspace_delete(self, request: Any, *call: Any) -> m.OperationView:
        return self._detached("delete", "delete", request, *call, state="DELETED")

    def workspace_snapshot_list(self, _r: Any, path: dict[str, str], *_: Any) -> m.SnapshotList:
        self.workspace_show(None, path)
        return m.SnapshotList(self.w.kept)

    def workspace_snapshot_create(self, request: m.SnapshotRequest, *call: Any) -> m.OperationView:
        return self._detached("take a snapshot of", "snapshot", request, *call)

    def workspace_snapshot_restore(
        self, _r: Any, path: dict[str, str], *call: Any
    ) -> m.OperationView:
        return self._detached("restore a snapshot of", "restore", path["snapshot"], path, *call)

    def workspace_snapshot_delete(
        self, _r: Any, path: dict[str, str], *call: Any
    ) -> m.OperationView:
        if path["snapshot"] not in self.w.kept:
            raise NotFound(f"cannot delete snapshot {path['snapshot']}: it has none of that name")
        return self._detached(
            "delete a snapshot of", "snapshot_delete", path["snapshot"], path, *call
        )

    def workspace_lease_clear(
        self, request: m.LeaseClearRequest, path: dict[str, str], *_: Any
    ) -> m.WorkspaceView:
        each = self.workspace_show(None, path)
        if each.lease_until and not each.stale and not request.force:
            raise Conflict(f"cannot clear the lease of workspace {each.name}: it is renewed")
        self.w.workspaces[each.name] = workspace_view(each.name)
        return self.workspace_show(None, path)

    def _detached(
        self, words: str, verb: str, request: object, path: dict[str, str], *call: Any,
        **changes: Any,
    ) -> m.OperationView:  # fmt: skip
        each = self.workspace_show(None, path)
        if each.state == "ATTACHED":
            raise Conflict(
                f"cannot {words} workspace {each.name}: it is attached to sandbox {each.vmid}",
                hint=f"agentlab workspace detach {each.name}",
            )
        return self._worked(verb, request, path, *call, **changes)

    def _worked(
        self, verb: str, request: object, path: dict[str, str], _q: Any, headers: Any,
        *, vmid: int = 0, **changes: Any,
    ) -> m.OperationView:  # fmt: skip
        each = self.workspace_show(None, path)

        def act() -> m.OperationView:
            self.w.asked.append(request)
            if f"workspace.{verb}" not in self.w.fails:
                state = changes.pop("state", each.state)
                changed = workspace_view(each.name, state, **changes)
                self.w.workspaces[each.name] = changed
            operation = self._operation(f"workspace.{verb}", vmid=vmid)
            if verb == "fsck":
                ended = self.w.operations[operation.id]
                self.w.operations[operation.id] = dataclasses.replace(ended, result=self.w.fsck)
            return operation

        return self._once(headers, act)

    # --- sessions ---

    def session_list(self, *_: Any) -> m.SessionList:
        return m.SessionList(list(self.w.sessions.values()))

    def session_show(self, _r: Any, path: dict[str, str], *_: Any) -> m.SessionView:
        found = self.w.sessions.get(path["name"])
        if found is None:
            raise unknown("session", path["name"], self.w.sessions)
        assert isinstance(found, m.SessionView)
        return found

    def session_create(
        self, request: m.SessionRequest, _p: Any, _q: Any, headers: Any
    ) -> m.SessionMade:
        if request.profile != "demo":
            raise unknown("profile", request.profile, ["demo"])
        work = request.workspace
        new = session_view(request.name, workspace=work or request.name)
        return self._new_session(new, request, headers, copies=not work)

    def session_fork(
        self, request: m.ForkRequest, path: dict[str, str], _q: Any, headers: Any
    ) -> m.SessionMade:
        self._stopped("fork", path)
        return self._new_session(session_view(request.name, origin=path["name"]), request, headers)

    def session_branch(
        self, request: m.BranchRequest, path: dict[str, str], _q: Any, headers: Any
    ) -> m.SessionMade:
        each = self.session_show(None, path)
        for found in self.w.sessions.values():
            if (found.origin, found.branch) == (each.name, request.branch):
                return m.SessionMade(found.name, found, None)
        name = f"{each.name}-{request.branch.replace('/', '-')}"
        new = session_view(name, origin=each.name, branch=request.branch)
        return self._new_session(new, request, headers)

    def _new_session(
        self, view: m.SessionView, request: object, headers: Any, *, copies: bool = True
    ) -> m.SessionMade:
        def act() -> m.OperationView:
            if view.name in self.w.sessions:
                raise Conflict(f"cannot make session {view.name}: there is one of that name")
            self.w.asked.append(request)
            self.w.sessions[view.name] = view
            return self._operation("workspace.create")

        operation = self._once(headers, act)
        return m.SessionMade(view.name, view, operation if copies else None)

    def session_resume(
        self, request: m.ResumeRequest, path: dict[str, str], _q: Any, headers: Any
    ) -> m.OperationView:
        each = self._stopped("resume", path)

        def act() -> m.OperationView:
            self.w.asked.append(request)
            self.w.sessions[each.name] = session_view(each.name, "RUNNING")
            return self._operation("sandbox.create", vmid=1003)

        return self._once(headers, act)

    def session_stop(
        self, request: m.SessionStopRequest, path: dict[str, str], _q: Any, headers: Any
    ) -> m.SessionEnded:
        each = self.session_show(None, path)
        if each.state == "STOPPED":
            return m.SessionEnded(each.name, None)

        def act() -> m.OperationView:
            self.w.asked.append(request)
            self.w.sessions[each.name] = session_view(each.name)
            return self._operation("session.stop", vmid=1003)

        return m.SessionEnded(each.name, self._once(headers, act))

    def session_delete(
        self, request: m.SessionDeleteRequest, path: dict[str, str], _q: Any, headers: Any
    ) -> m.SessionEnded:
        each = self._stopped("delete", path)

        def act() -> m.OperationView:
            self.w.asked.append(request)
            del self.w.sessions[each.name]
            return self._operation("session.delete")

        return m.SessionEnded(each.name, self._once(headers, act))

    def _stopped(self, verb: str, path: dict[str, str]) -> m.SessionView:
        each = self.session_show(None, path)
        if each.state == "RUNNING":
            raise Conflict(
                f"cannot {verb} session {each.name}: it runs in sandbox {each.vmid}",
                hint=f"stop it first: agentlab session stop {each.name}",
            )
        return each

"""A way to Proxmox that answers from a script, for tests of what is asked and how often."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agentlab.hypervisor.base import ExecResult
from agentlab.hypervisor.proxmox.transport import Method, Parameters

Answer = object | Exception | Callable[[Parameters], object]


@dataclass
class ScriptedTransport:
    """`answers` maps "METHOD regex" to the answers of one call after another; the last one stays.

    A call that no row fits is a failure of the test.
    """

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    calls: list[tuple[str, str, dict[str, object]]] = field(default_factory=list)
    name: str = "scripted"
    foreground: bool = False

    def call(
        self, method: Method, path: str, params: Parameters | None = None, *, timeout: float = 30.0
    ) -> object:
        self.calls.append((method, path, dict(params or {})))
        for row, answers in self.answers.items():
            if re.fullmatch(row, f"{method} {path}"):
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                if isinstance(answer, Exception):
                    raise answer
                return answer(params or {}) if callable(answer) else answer
        raise AssertionError(f"nobody expected {method} {path} {params}")

    def guest_exec(
        self, node: str, vmid: int, argv: Sequence[str], stdin: str, *, timeout: float
    ) -> ExecResult | int:
        params = {"command": list(argv), "stdin": stdin}
        answer = self.call("POST", f"/nodes/{node}/qemu/{vmid}/agent/exec", params)
        assert isinstance(answer, (int, ExecResult))
        return answer

    def asked(self, method: str, pattern: str) -> list[dict[str, object]]:
        """The parameters of all calls that fit."""
        return [
            params
            for verb, path, params in self.calls
            if verb == method and re.search(pattern, path)
        ]

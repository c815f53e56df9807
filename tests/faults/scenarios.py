"""All scenarios."""

from __future__ import annotations

from tests.faults.scenario import Scenario, Target, look
from tests.faults.scenarios_sandbox import SANDBOX, at_work, booting, ready
from tests.faults.scenarios_session import SESSION
from tests.faults.scenarios_workspace import WORKSPACE

__all__ = ["SANDBOX", "SCENARIOS", "Scenario", "Target", "at_work", "booting", "look", "ready"]

SCENARIOS = (*SANDBOX, *WORKSPACE, *SESSION)

"""The real daemon with a fault built in at one boundary of a step.

    killing_daemon.py --kill MOMENT:VERB:STEP | --fail STEP  --config FILE

`--kill before:do:clone` sends the daemon SIGKILL just after it has written that it begins the step
(`after`: when the step is done and not yet written so).  `--fail deliver` has that step fail, so
that the operation turns back.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from agentlab import config, log
from agentlab.daemon.main import serve
from agentlab.errors import Conflict
from agentlab.store.operations import OperationRow


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kill", default="")
    parser.add_argument("--fail", default="")
    parser.add_argument("--config", type=Path, required=True)
    args = parser.parse_args()

    def observer(moment: str, verb: str, operation: OperationRow, step: str) -> None:
        if args.kill == f"{moment}:{verb}:{step}":
            os.kill(os.getpid(), signal.SIGKILL)
        if args.fail == step and (moment, verb) == ("after", "do"):
            raise Conflict(f"cannot {step}: the test says so")

    log.setup()
    return serve(config.load(args.config), observer=observer)


if __name__ == "__main__":
    sys.exit(main())

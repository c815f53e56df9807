"""`version`."""

from __future__ import annotations

import sys

from agentlab import VERSION
from agentlab import version as build
from agentlab.cli.command import Answer, Context


def version(_ctx: Context) -> Answer:
    python = ".".join(str(part) for part in sys.version_info[:3])
    document = {"version": VERSION, "commit": build.commit(), "python": python}
    return Answer(document, [build.text()])

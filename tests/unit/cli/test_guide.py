"""The published guide and the command line: each of its lines about sandboxes can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab.cli.parse import parse
from tests.e2e import test_guide_sandboxes
from tests.e2e.guide import COPY, GUIDE, extract

LINES = COPY.read_text().splitlines()
FILLED = {"<vmid>": "1003", "<ttl>": "4h", "<profile>": "demo"}

TEXT = """\
## Sandbox Operations
**Problem:** `agentlab sandbox destroy <vmid>` fails, and `sandbox revert` too
```bash
# Then `agentlab sandbox nothing`
agentlab sandbox show <vmid>
agentlab workspace list
```
## Performance
```bash
agentlab sandbox list
```
## Maintenance
```bash
## a comment
0 2 * * 0 root /usr/local/bin/agentlab sandbox prune
agentlab sandbox show <vmid>
```
"""


def test_lines_are_found_where_they_stand() -> None:
    assert extract(TEXT) == [
        "agentlab sandbox destroy <vmid>",
        "agentlab sandbox show <vmid>",
        "agentlab sandbox prune",
    ]


@pytest.mark.skipif(not GUIDE.exists(), reason="the guide is not beside this checkout")
def test_our_copy_is_as_the_guide() -> None:
    assert extract(GUIDE.read_text()) == LINES


@pytest.mark.parametrize("text", LINES)
def test_every_line_is_run_in_a_real_sandbox(text: str) -> None:
    assert text in Path(test_guide_sandboxes.__file__).read_text()


@pytest.mark.parametrize("text", [each for each in LINES if each.startswith("agentlab ")])
def test_every_line_can_be_read(text: str) -> None:
    words = [FILLED.get(word, word) for word in text.split()[1:]]
    line = parse(words)
    assert line.command is not None
    assert text.startswith(f"agentlab {line.command.name}")

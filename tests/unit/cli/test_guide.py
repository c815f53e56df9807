"""The published guide and the command line: each of its lines that are run can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab.cli.parse import parse
from tests.e2e import test_guide_sandboxes, test_guide_workspaces
from tests.e2e.guide import GUIDE, SANDBOXES, TOPICS, WORKSPACES, Topic, extract

RUN_IN = {SANDBOXES: test_guide_sandboxes, WORKSPACES: test_guide_workspaces}
LINES = [(topic, line) for topic in TOPICS for line in topic.copy.read_text().splitlines()]
FILLED = {
    "<vmid>": "1003", "<ttl>": "4h", "<profile>": "demo", "<workspace>": "data", "<name>": "before",
    "<new-workspace>": "try", "<session>": "fix", "<path>": "out/",
}  # fmt: skip

TEXT = """\
## Sandbox Operations
**Problem:** `agentlab sandbox destroy <vmid>` fails, and `sandbox revert` too
```bash
# Then `agentlab sandbox nothing`
agentlab sandbox show <vmid>
agentlab workspace list
```
## Workspace Issues
```bash
agentlab sandbox list
agentlab workspace fsck <workspace>
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
    assert extract(TEXT, SANDBOXES) == [
        "agentlab sandbox destroy <vmid>",
        "agentlab sandbox show <vmid>",
        "agentlab sandbox prune",
    ]
    assert extract(TEXT, WORKSPACES) == ["agentlab workspace fsck <workspace>"]


@pytest.mark.skipif(not GUIDE.exists(), reason="the guide is not beside this checkout")
@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.copy.stem)
def test_our_copy_is_as_the_guide(topic: Topic) -> None:
    assert extract(GUIDE.read_text(), topic) == topic.copy.read_text().splitlines()


@pytest.mark.parametrize(("topic", "text"), LINES, ids=[line for _, line in LINES])
def test_every_line_has_a_place_in_its_story(topic: Topic, text: str) -> None:
    """Whether it is run there, the story itself says at its end."""
    assert text in Path(str(RUN_IN[topic].__file__)).read_text()


@pytest.mark.parametrize("text", [line for _, line in LINES if line.startswith("agentlab ")])
def test_every_line_can_be_read(text: str) -> None:
    words = [FILLED.get(word, word) for word in text.split()[1:]]
    line = parse(words)
    assert line.command is not None
    assert text.startswith(f"agentlab {line.command.name}")

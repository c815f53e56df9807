"""Every `agentlab …` that our own texts tell people to type is a command that there is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab.cli.parse import find
from agentlab.cli.table import COMMANDS
from agentlab.errors import AgentLabError

ROOT = Path(__file__).resolve().parents[3]
_LINE = re.compile(r"(?<![\w/.-])agentlab ((?:[a-z]+ ?){1,3})")
_NOUNS = {each.noun for each in COMMANDS}


def texts(path: Path) -> Iterator[str]:
    """Every text in a program's code that is no docstring, with what is filled in left out."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    skipped = {id(each.value) for each in nodes if isinstance(each, ast.Expr)}
    filled = [each for each in nodes if isinstance(each, ast.JoinedStr)]
    skipped |= {id(part) for each in filled for part in each.values}
    for each in filled:
        parts = [part.value if isinstance(part, ast.Constant) else "X" for part in each.values]
        yield "".join(str(part) for part in parts)
    for node in nodes:
        if isinstance(node, ast.Constant) and id(node) not in skipped:
            yield str(node.value)


def told() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "agentlab").rglob("*.py")):
        for text in texts(path):
            for found in _LINE.finditer(text):
                yield str(path.relative_to(ROOT)), found[1].strip()


@pytest.mark.parametrize(("path", "line"), sorted(set(told())))
def test_hint_is_a_command(path: str, line: str) -> None:
    try:
        command, _ = find(line.split())
    except AgentLabError as error:
        pytest.fail(f"{path}: agentlab {line}: {error.message}; {error.hint}")
    assert command is not None or line in _NOUNS


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda each: each.name)
def test_every_line_of_our_pages_can_be_read(page: Path) -> None:
    """Lines of code blocks, up to what a shell makes of them."""
    for block in re.findall(
        r"^```(?:bash)?\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    ):
        for line in block.replace("\\\n", " ").splitlines():
            found = _LINE.match(line)
            if found and found[1].split()[0] in _NOUNS:
                find(found[1].split())

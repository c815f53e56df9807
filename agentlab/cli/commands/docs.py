"""`docs`: the reference pages under docs/, written from the tables or checked."""

from __future__ import annotations

from pathlib import Path

from agentlab.cli import manual, reference
from agentlab.cli.command import Answer, Context, Usage


def pages() -> dict[str, str]:
    """File names and what they must hold."""
    return {
        "cli.md": manual.render_markdown(),
        "states.md": reference.render_states(),
        "api.md": reference.render_api(),
        "config.md": reference.render_config(),
    }


def docs(ctx: Context) -> Answer:
    folder = Path(ctx.args.text("--dir") or "docs")
    if not folder.is_dir():
        raise Usage(
            f"cannot write the reference pages: no directory {folder}",
            hint="go to the root of a checkout, or name it: --dir DIR",
        )
    stale = [name for name, text in pages().items() if _read(folder / name) != text]
    document = {"stale": stale, "dir": str(folder)}
    if ctx.args.flag("--check"):
        lines = [f"{folder / name} is stale: run agentlab docs" for name in stale]
        return Answer(document, lines or ["all pages are fresh"], 1 if stale else 0)
    for name in stale:
        (folder / name).write_text(pages()[name], encoding="utf-8")
    return Answer(document, [f"wrote {folder / name}" for name in stale] or ["nothing to write"])


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None

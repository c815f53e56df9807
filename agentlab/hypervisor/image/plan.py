"""Which disk image a template is made from: that of the recipe, or an adapted cloud image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agentlab.hypervisor.image.adapt import adapt_image, adapted_key
from agentlab.hypervisor.image.disk import build_disk, disk_key


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """`key` names the content; `make` makes the qcow2 file, or finds it made."""

    key: str
    make: Callable[[], Path]


def plan_image(
    template_dir: Path, runner: bytes, image: str, on_step: Callable[[str], None]
) -> PlannedImage:
    """`image` is the path of a cloud image, which is only read; "" for the recipe."""
    if image:
        source = Path(image)
        on_step(f"reading {source.name}")
        key = adapted_key(source, runner)
        return PlannedImage(key, lambda: adapt_image(template_dir, source, runner, on_step))
    return PlannedImage(
        disk_key(runner), lambda: build_disk(template_dir, runner, on_step=on_step).path
    )

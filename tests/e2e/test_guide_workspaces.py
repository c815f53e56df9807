"""The guide's lines about workspaces and sessions, run as written, in the order of its stories.

What each line said is in a file that is named at the end of the run (`-s` shows it, too).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.guide import WORKSPACES, Reader, bundled
from tests.e2e.proxmox import Node, proxmox_laboratory
from tests.e2e.workspaces import Place, overwrite, workspace_laboratory

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(1800)]

ATTACH = "agentlab workspace attach <workspace> <vmid>"
DETACH = "agentlab workspace detach <workspace>"
FSCK = "agentlab workspace fsck <workspace>"
REPAIR = "agentlab workspace fsck <workspace> --repair"
RESTORE = "agentlab workspace snapshot restore <workspace> <name>"
STOP = "agentlab session stop <session>"
DOCTOR = "agentlab session doctor <session> --out <path>"
RESUME = "agentlab session resume <session>"
FORK = "agentlab workspace fork <workspace> --name <new-workspace> --from-snapshot <name>"


@dataclass
class Story:
    place: Place
    reader: Reader

    def say(self, line: str, status: int = 0, answer: str = "", **filled: str) -> str:
        """Runs a line of the guide, its < > filled in."""
        says = line
        for name, value in filled.items():
            says = says.replace(f"<{name.replace('_', '-')}>", value)
        return self.reader.guide(line, status, says=says, answer=answer)


@dataclass
class ProxmoxPlace(Place):
    """As `Place`, whose volumes are on the lab node's storage."""

    node: Node = field(kw_only=True)

    def image(self, workspace: str) -> Path:
        (found,) = self._images(str(self.show(workspace)["number"]))
        return found

    def volumes(self) -> list[str]:
        return [path.name for path in self._images("99*")]

    def _images(self, number: str) -> list[Path]:
        return sorted((self.node.directory / "storage/images").glob(f"{number}/vm-*"))


@pytest.fixture(scope="module", params=["local", pytest.param("proxmox", marks=pytest.mark.soak)])
def story(request: pytest.FixtureRequest, program: Path) -> Iterator[Story]:
    """On Proxmox each guest boots from its disk, which takes minutes in all."""
    at = on_proxmox() if request.param == "proxmox" else workspace_laboratory(program)
    with at as place:
        yield Story(place, Reader(place.lab, WORKSPACES, f"workspaces-{request.param}"))
        assert place.lab.warnings() == []


@contextlib.contextmanager
def on_proxmox() -> Iterator[Place]:
    with proxmox_laboratory("api", storage="local") as (lab, node):
        lab.profile("box", "true", ttl="4h", memory=512)
        lab.start()
        built = lab.cli("template", "build", "debian-12", timeout=1800)
        assert built.returncode == 0, built.stderr
        yield ProxmoxPlace(lab, node=node)
        assert node.leftovers() == []


@pytest.fixture(autouse=True)
def tell(story: Story, request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    story.reader.tell(request.node)


def test_workspace_filesystem_errors(story: Story) -> None:
    place = story.place
    vmid = place.box("box")
    place.run("workspace create data --size 256M")
    place.run(f"workspace attach data {vmid}")
    place.say(vmid, "echo kept >/work/file", user="agent")

    # it is attached: fsck refuses, and says what to do
    said = story.say(FSCK, 1, workspace="data")
    assert f"attached to sandbox {vmid}" in said
    assert DETACH.replace("<workspace>", "data") in said
    story.say(DETACH, workspace="data")
    assert "clean" in story.say(FSCK, workspace="data")

    # it refuses to mount in the guest
    overwrite(place.image("data"), 1024, 1024)
    said = story.say(ATTACH, 1, workspace="data", vmid=vmid)
    assert "its file system is damaged" in said
    story.say(DETACH, workspace="data")
    assert "NEEDS REPAIR" in story.say(FSCK, 1, workspace="data")
    story.say(REPAIR, workspace="data")
    story.say(ATTACH, workspace="data", vmid=vmid)
    assert place.say(vmid, "cat /work/file", user="agent") == "kept"
    place.run(f"sandbox destroy --force {vmid}")
    place.run("workspace delete --yes data")


def test_workspace_snapshot_restore_fails(story: Story) -> None:
    place = story.place
    place.run("session create --name fix --profile box --size 256M")
    story.say(RESUME, session="fix")
    vmid = str(place.lab.ask("session", "show", "fix")["vmid"])
    place.say(vmid, "echo before >/work/file", user="agent")
    story.say(STOP, session="fix")
    place.run("workspace snapshot create fix good")
    story.say(RESUME, session="fix")
    vmid = str(place.lab.ask("session", "show", "fix")["vmid"])
    place.say(vmid, "echo after >/work/file", user="agent")

    # an error about the workspace being attached, and its remedies
    said = story.say(RESTORE, 1, workspace="fix", name="good")
    assert f"attached to sandbox {vmid}" in said
    assert "agentlab session stop fix" in said
    assert "agentlab workspace detach fix" in said
    story.say(DETACH, workspace="fix")

    # a safe experiment without overwriting data
    story.say(FORK, workspace="fix", new_workspace="try", name="good")

    # all that is known of it, in one file
    bundle = place.lab.scratch / "fix.tar.gz"
    story.say(DOCTOR, session="fix", path=str(bundle))
    found = bundled(bundle)
    assert json.loads(found["session.json"])["name"] == "fix"
    assert '"error"' not in found["volume.json"]

    # it asks first
    story.say(RESTORE, 3, workspace="fix", name="good")
    story.say(RESTORE, workspace="fix", name="good", answer="y")
    story.say(ATTACH, workspace="fix", vmid=vmid)
    assert place.say(vmid, "cat /work/file", user="agent") == "before"
    story.say(STOP, session="fix")
    story.say(RESUME, session="fix")
    vmid = str(place.lab.ask("session", "show", "fix")["vmid"])
    assert place.say(vmid, "cat /work/file", user="agent") == "before"
    place.run(f"sandbox destroy --force {vmid}")
    place.run("workspace delete --yes try")
    place.run("session delete --yes --with-workspace fix")
    assert place.volumes() == []


def test_no_line_of_the_guide_was_left_out(story: Story) -> None:
    """The last one: what stands above has run them all."""
    assert story.reader.not_run() == []

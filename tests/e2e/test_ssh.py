"""`sandbox new --and-ssh` to a real sshd, from the host that the sandboxes' bridge is on."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.e2e.lab import ROOT, laboratory

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]


def test_new_and_ssh_is_one_line() -> None:
    with laboratory() as lab:
        lab.profile("demo", "true")
        lab.start()
        built = lab.cli("template", "build", "debian-12")
        assert built.returncode == 0, built.stderr
        home = lab.scratch / "home"
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        key = home / ".ssh" / "agentlab_id_ed25519"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        line = [*lab.program, "--socket", str(lab.socket), "new", "--profile", "demo",
                "--name", "box", "--and-ssh"]  # fmt: skip
        done = subprocess.run(
            ["ip", "netns", "exec", lab.namespace, *line],
            input="echo $(whoami) on $(hostname); exit 7\n", cwd=ROOT, text=True,
            capture_output=True, env={**os.environ, "HOME": str(home)}, check=False,
        )  # fmt: skip
        assert "agent on box" in done.stdout, done.stderr
        assert done.returncode == 7  # ssh's own
        assert lab.ask("sandbox", "show", "box")["state"] == "RUNNING"
        assert sorted(path.name for path in (home / ".ssh").iterdir()) == [
            "agentlab_id_ed25519", "agentlab_id_ed25519.pub",
        ]  # fmt: skip  # no known_hosts that the next VM of this address would be at odds with
        assert lab.cli("rm", "--force", "box").returncode == 0
        assert lab.leftovers() == []
        assert lab.warnings() == []

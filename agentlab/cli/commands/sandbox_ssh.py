"""`sandbox new --and-ssh`: our public key goes in and its host key comes out through the guest agent,
so that ssh trusts nothing that comes over the network."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path
from typing import NoReturn

from agentlab.api import messages as m
from agentlab.cli.command import Context, Usage
from agentlab.cli.commands.sandbox_exec import followed
from agentlab.client.client import Client
from agentlab.client.program import Ended, Piece, Program
from agentlab.errors import AgentLabError

USER = "agent"
_NAMES = ("agentlab_id_ed25519.pub", "id_ed25519.pub", "id_rsa.pub")
_KEY = re.compile(r"(?:ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+(?: [ -~]*)?")
_HOST_KEY = re.compile(r"(ssh-ed25519 [A-Za-z0-9+/=]{16,200})(?: .*)?\n")
_SCRIPT = (
    'umask 077 && mkdir -p "$HOME/.ssh" && printf "%s\\n" "$1" >> "$HOME/.ssh/authorized_keys"'
    " && cat /etc/ssh/ssh_host_ed25519_key.pub"
)


def public_key(ctx: Context) -> Path:
    """The user's public key; Usage when there is none, or it is none."""
    named = ctx.args.text("--identity")
    if named:
        path = Path(named if named.endswith(".pub") else f"{named}.pub").expanduser()
    else:
        folder = Path("~/.ssh").expanduser()
        path = next((folder / name for name in _NAMES if (folder / name).is_file()), Path())
        if not path.name:
            raise Usage(
                f"cannot use ssh: no public key in {folder} ({', '.join(_NAMES)})",
                hint=f"make one: ssh-keygen -t ed25519 -f {folder}/agentlab_id_ed25519;"
                " or name one: --identity FILE",
            )
    if not _KEY.fullmatch(path.read_text(errors="replace").strip()):
        raise Usage(f"cannot use ssh: {path} is no public key of ssh")
    return path


def ssh(ctx: Context, client: Client, sandbox: m.SandboxView, key: Path) -> NoReturn:
    """Becomes `ssh agent@ADDRESS`; its exit status is ours."""
    text = key.read_text(errors="replace").strip()
    argv = command(sandbox, key, _exchange(ctx, client, sandbox, text))
    ctx.out.note(f"ssh {USER}@{sandbox.address}", "bold")
    ctx.out.still()
    try:
        os.execvp(argv[0], argv)  # noqa: S606  # no shell is wanted
    except FileNotFoundError as error:
        raise AgentLabError(
            f"cannot use ssh: there is none here; sandbox {sandbox.vmid} is there",
            hint=f"install openssh-client, or: agentlab sandbox exec {sandbox.vmid} -- COMMAND",
        ) from error


def _exchange(ctx: Context, client: Client, sandbox: m.SandboxView, key: str) -> str:
    """Lets our key in; gives the guest's host key."""
    argv = ["sh", "-c", _SCRIPT, "sh", key]
    order = m.ExecRequest(argv=argv, id=secrets.token_hex(12), user=USER, workdir="/")
    program = Program(client, str(sandbox.vmid), order)
    out, err, status = b"", b"", 0
    with contextlib.closing(followed(ctx, program)) as items:
        for item in items:
            if isinstance(item, Piece):
                out, err = out + item.out, err + item.err
            elif isinstance(item, Ended):
                status = item.status
    found = _HOST_KEY.fullmatch(out.decode(errors="replace"))
    if status or not found:
        why = err.decode(errors="replace").strip() or "it has no ed25519 host key"
        raise AgentLabError(f"cannot use ssh: sandbox {sandbox.vmid}: {why[:300]}")
    return found[1]


def command(sandbox: m.SandboxView, key: Path, host_key: str) -> list[str]:
    """The ssh that knows this one host by this one key.  Pure, but for a look at the private key.

    KnownHostsCommand (OpenSSH 8.5) leaves no file behind that the next VM of this address would
    be at odds with.
    """
    alias = f"agentlab-{sandbox.vmid}"
    private = key.with_suffix("")
    options = (
        f"HostKeyAlias={alias}",
        f"KnownHostsCommand=/bin/echo {alias} {host_key}",
        "UserKnownHostsFile=/dev/null",
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=yes",
        "UpdateHostKeys=no",
        "IdentitiesOnly=yes",
    )
    words = [word for option in options for word in ("-o", option)]
    identity = private if private.exists() else key  # ssh-agent may have the private half
    return ["ssh", *words, "-i", str(identity), f"{USER}@{sandbox.address}"]

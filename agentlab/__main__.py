"""One program, three roles: the name it is called by, or its first argument, says which.

Nothing is imported before the role is known: the client must start as fast as Python does.
"""

from __future__ import annotations

import sys

_NAMES = {"agentlabd": "daemon", "agentlab-guest": "guest"}
_ROLES = ("daemon", "guest")


def main(argv: list[str] | None = None) -> int:
    """Runs a role; `argv` is the whole command line with the program's name. The exit status."""
    command = sys.argv if argv is None else argv
    name = command[0].rpartition("/")[2] if command else "agentlab"
    role, rest = _NAMES.get(name, ""), command[1:]
    if rest in (["--version"], ["version"]):
        from agentlab import version

        sys.stdout.write(version.text() + "\n")
        return 0
    if rest and rest[0] in _ROLES and role in ("", rest[0]):
        role, rest = rest[0], rest[1:]
    try:
        return _run(role, rest)
    except KeyboardInterrupt:
        return 130


def _run(role: str, argv: list[str]) -> int:
    if role == "daemon":
        from agentlab.daemon.main import main as daemon

        return daemon(argv)
    if role == "guest":
        from agentlab.guest.main import main as guest

        return guest(argv)
    from agentlab.cli.main import main as cli

    return cli(argv)


if __name__ == "__main__":
    sys.exit(main())

"""The guest's root file system as a tar file, by mmdebstrap from this host's own package sources."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from agentlab import run
from agentlab.errors import Unsupported
from agentlab.hypervisor.files import new_directory, sync_tree
from agentlab.hypervisor.image import recipe

_FORMAT = "1"
_TIMEOUT = 30 * 60.0
_KEEP = 2
_APT = Path("/etc/apt")
# How this host reaches its mirrors; all else of its configuration is its own affair.
_APT_OPTIONS = re.compile(
    r"(?i)^Acquire::(http|https|ftp|Retries|ForceIPv[46]|Check-Valid-Until|Check-Date|"
    r"Max-ValidTime|Min-ValidTime|AllowInsecureRepositories)\b"
)


def rootfs_key() -> str:
    parts = (_FORMAT, *recipe.packages())
    text = "\n".join(parts).encode() + recipe.read(recipe.CUSTOMISE)
    return hashlib.sha256(text).hexdigest()[:16]


def ensure_rootfs(template_dir: Path, on_step: Callable[[str], None]) -> Path:
    """The tar file of the present recipe, made when it is not there.  Hold the build lock."""
    path = template_dir / f"rootfs-{rootfs_key()}.tar"
    if path.exists():
        os.utime(path)
        return path
    on_step("installing the guest's packages")
    with new_directory(template_dir, "rootfs") as work:
        hook = work / recipe.CUSTOMISE
        hook.write_bytes(recipe.read(recipe.CUSTOMISE))
        hook.chmod(0o700)
        sources = _write_sources(work, _codename())
        target = work / "rootfs.tar"
        begun = time.monotonic()
        run.run(_mmdebstrap(hook, target, sources), timeout=_TIMEOUT)
        sync_tree(work)
        target.rename(path)
        on_step(f"the guest's packages are installed ({time.monotonic() - begun:.0f} s)")
    _prune(template_dir)
    return path


def select_sources(name: str, text: str, codename: str) -> str:
    """Those parts of an apt source file that are of the distribution itself, in the same format.

    A host has other sources too, which the guest's packages must not come from: told apart by
    the suite, which starts with the codename, and by the component `main`.
    """
    if name.endswith(".sources"):
        stanzas = re.split(r"\n[ \t]*\n", text)
        return "\n\n".join(stanza for stanza in stanzas if _fits_stanza(stanza, codename))
    return "\n".join(line for line in text.splitlines() if _fits_line(line, codename))


def _fits_stanza(stanza: str, codename: str) -> bool:
    fields: dict[str, list[str]] = {}
    last = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in (" ", "\t") and last:
            fields[last] += line.split()
        elif ":" in line:
            last, _, value = line.partition(":")
            last = last.strip().lower()
            fields[last] = value.split()
    return (
        "deb" in fields.get("types", [])
        and fields.get("enabled", ["yes"])[:1] != ["no"]
        and "main" in fields.get("components", [])
        and _of_distribution(fields.get("suites", []), codename)
    )


def _fits_line(line: str, codename: str) -> bool:
    words = re.sub(r"\[[^]]*\]", "", line).split()
    return (
        len(words) >= 4  # type, URI, suite, component
        and words[0] == "deb"
        and _of_distribution(words[2:3], codename)
        and "main" in words[3:]
    )


def _of_distribution(suites: Iterable[str], codename: str) -> bool:
    return any(suite.split("/")[0].split("-")[0] == codename for suite in suites)


def _codename() -> str:
    release = platform.freedesktop_os_release()
    if release.get("ID") != "debian" or "VERSION_CODENAME" not in release:
        raise Unsupported(
            "cannot build the template: this host is not Debian",
            hint="build it on a Debian or Proxmox VE host",
        )
    return release["VERSION_CODENAME"]


def _write_sources(work: Path, codename: str) -> list[Path]:
    found = []
    listed = [*_APT.glob("sources.list.d/*.list"), *_APT.glob("sources.list.d/*.sources")]
    for number, source in enumerate([_APT / "sources.list", *sorted(listed)]):
        with contextlib.suppress(FileNotFoundError):
            text = select_sources(source.name, source.read_text(), codename)
            if text.strip():
                path = work / f"{number}{source.suffix}"
                path.write_text(text + "\n")
                found.append(path)
    if not found:
        raise Unsupported(
            f"cannot build the template: apt has no source of {codename} main",
            hint="see /etc/apt/sources.list and sources.list.d",
        )
    return found


def _mmdebstrap(hook: Path, target: Path, sources: list[Path]) -> list[str]:
    dump = run.run(["apt-config", "dump", "Acquire"], timeout=30).text
    options = [line.rstrip(";") for line in dump.splitlines() if _APT_OPTIONS.match(line)]
    options = [option for option in options if '""' not in option]
    options.append('Acquire::Languages "none"')
    options.append(f'Dir::Etc::netrcparts "{_APT / "auth.conf.d"}"')
    without = [f"path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
    return [
        *("mmdebstrap", "--variant=minbase", "--format=tar", "--quiet"),
        f"--include={','.join(recipe.packages())}",
        *(f"--aptopt={option}" for option in options),
        *(f"--dpkgopt={option}" for option in without),
        f"--customize-hook={hook}",
        *(_codename(), str(target)),
        *(str(path) for path in sources),
    ]


def _prune(template_dir: Path) -> None:
    tars = sorted(template_dir.glob("rootfs-*.tar"), key=lambda tar: tar.stat().st_mtime)
    for tar in tars[:-_KEEP]:
        tar.unlink(missing_ok=True)

"""docs/how-to/proxmox.md asks for exactly the rights of the table, by commands that say the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from agentlab.hypervisor.proxmox.rights import (
    RIGHTS,
    ROLE,
    Place,
    Scope,
    missing_rights,
    render_remedy,
    role_privileges,
)

PAGE = Path(__file__).resolve().parents[4] / "docs/how-to/proxmox.md"
TEXT = PAGE.read_text("utf-8")
# Built into Proxmox VE: `pveum role list`, 8.2.4.
BUILT_IN = {
    "PVETemplateUser": {"VM.Audit", "VM.Clone"},
    "PVEDatastoreUser": {"Datastore.AllocateSpace", "Datastore.Audit"},
    "PVESDNUser": {"SDN.Audit", "SDN.Use"},
}


def commands(verb: str) -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(rf"^{verb} .*$", TEXT, re.MULTILINE)]


@pytest.mark.parametrize(("at", "major"), [(0, 8), (1, 9)])
def test_the_role_is_the_tables(at: int, major: int) -> None:
    found = commands("pveum role add")
    assert len(found) == 2
    assert found[at][3:5] == [ROLE, "--privs"]
    given = found[at][5].split()
    assert given == sorted(role_privileges(major))


def test_each_privilege_stands_in_the_page_with_its_reason() -> None:
    rows = re.findall(
        r"^\| `([A-Za-z.]+)`(?: \((\d)\))? \| ([a-z]+) \| (.*) \|$", TEXT, re.MULTILINE
    )
    expected = [
        (each.privilege, str(each.majors[0]) if len(each.majors) == 1 else "", each.place, each.why)
        for each in RIGHTS
    ]
    assert rows == expected


def test_the_roles_of_proxmox_give_what_the_table_asks() -> None:
    scope = Scope(1000, "vmbr1", (9000,), ("local-lvm",), pool="agentlab")
    for each in missing_rights({}, 9, scope):
        assert each.privilege in BUILT_IN.get(each.role, role_privileges(9))


def test_the_pages_commands_are_those_of_init() -> None:
    pool = Scope(1000, "vmbr1", (), ("local-lvm",), pool="agentlab")
    own = Scope(1000, "vmbr1", (9000,), ("local-lvm",))
    told = {
        tuple(shlex.split(line))
        for scope in (pool, own)
        for line in render_remedy(missing_rights({}, 8, scope), "agentlab@pve!daemon", None)
    }
    asked = {
        (*words[:6], "--tokens", "agentlab@pve!daemon", *words[6:])
        for words in commands("pveum acl modify")
    }
    assert asked == {words for words in told if words[1] == "acl"}


def test_nothing_is_asked_for_that_is_in_no_row() -> None:
    named = set(re.findall(r"\b(?:VM|Datastore|SDN|Sys|Pool)\.[A-Z][A-Za-z.]+[a-zA-Z]", TEXT))
    assert named == {each.privilege for each in RIGHTS}
    assert {each.place for each in RIGHTS} == set(Place)

"""Bad input for workspaces and sessions, through the real daemon: what is said, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.fakes.work_hypervisor import WorkHypervisor
from tests.unit.daemon.bench import Bench, open_bench

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with open_bench(tmp_path_factory.mktemp("w"), hypervisor=WorkHypervisor()) as found:
        yield found


@pytest.fixture
def lab(bench: Bench, cli: Run, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Workspace `data`, `used` in sandbox 1005, and a stopped session `fix`."""
    monkeypatch.setenv("AGENTLAB_SOCKET", str(bench.world.config.socket))
    if cli("session", "show", "fix")[0] == 1:
        for line in (
            "workspace create data --size 1G",
            "workspace create used --size 1G",
            "new --profile demo --name box --vmid 1005 --workspace used",
            "session create --name fix --profile demo --size 1G",
        ):
            status, _, err = cli(*line.split())
            assert status == 0, err
    return bench


def everything(bench: Bench) -> list[list[tuple[object, ...]]]:
    with bench.store.read() as tx:
        return [
            [tuple(row) for row in tx.execute(f"SELECT * FROM {table}").fetchall()]
            for table in ("sandbox", "operation", "event", "session")
        ]


@pytest.mark.parametrize(
    ("line", "status", "says", "hint"),
    [
        # names
        ("workspace show dta", 1, "no workspace dta", "did you mean data?"),
        ("session show fxi", 1, "no session fxi", "did you mean fix?"),
        ("workspace create data", 1, "there is one of that name already",
         "agentlab workspace show data"),
        ("session create --name fix --profile demo", 1, "there is one of that name already",
         "agentlab session show fix"),
        *(
            (f"workspace create --name={name}", 2, f"cannot use '{name}' as the name of a workspace",
             "use 1 to 63 lower-case letters")
            for name in ("Big", "1a", "a_b", "a.b", "../x", "a-", "ä")
        ),
        ("session create --name Big --profile demo", 2, "as the name of a session", "lower-case"),
        ("session create --name n --profile dmeo", 1, "no profile dmeo", "did you mean demo?"),
        ("session create --name n --profile demo --workspace dta", 1, "no workspace dta",
         "did you mean data?"),
        ("session create --name n --profile demo --workspace fix", 1, "it belongs to session fix",
         "agentlab session fork fix --name NEW"),
        # sizes
        *(
            (f"workspace create n --size={size}", 2, f"cannot read the size '{size}'", "80G")
            for size in ("0", "-1", "1.5G", "80X", "huge", "")
        ),
        ("workspace create n --size 1M", 2, "size: must be from 64M", "--size 20"),
        ("workspace resize data --size 512M", 2, "a volume is never made smaller", "copy"),
        ("workspace resize data", 2, "--size is missing", "workspace resize --help"),
        # attached, or not
        ("workspace fsck used", 1, "it is attached to sandbox 1005",
         "agentlab workspace detach used"),
        ("workspace snapshot restore used one", 1, "it is attached to sandbox 1005",
         "agentlab workspace detach used"),
        ("workspace fork used --name n", 1, "it is attached to sandbox 1005", "detach used"),
        ("workspace delete --yes used", 1, "it is attached to sandbox 1005", "detach used"),
        ("workspace attach used 1009", 1, "no sandbox 1009", ""),
        ("workspace attach data box", 1, "it has workspace used", "workspace detach used"),
        ("workspace rebind data", 1, "no sandbox has it", "agentlab workspace attach data SANDBOX"),
        ("workspace lease clear used", 1, "sandbox 1005 has it and renews it", "detach used"),
        ("new --profile demo --workspace used", 1, "it is attached to sandbox 1005", "detach used"),
        ("new --profile demo --workspace dta", 1, "no workspace dta", "did you mean data?"),
        # snapshots
        ("workspace snapshot create data a/b", 2, "cannot use 'a/b' as the name of a snapshot", ""),
        ("workspace snapshot create data one", 1, "there is nothing in it yet", "attach it once"),
        # sessions
        ("session branch fix ..", 2, "cannot use '..' as the name of a branch", "check-ref-format"),
        ("session branch fix -- -x", 2, "cannot use '-x' as the name of a branch", ""),
        ("workspace delete --yes fix", 1, "it belongs to session fix", "--with-workspace"),
        ("session resume fix --ttl soon", 2, "cannot read the duration 'soon'", "90s"),
        # jobs
        ("job validate --repo https://h/x --task t --session fxi", 1, "no session fxi",
         "did you mean fix?"),
        ("job validate --repo https://h/x --task t --profile demo --workspace dta", 1,
         "no workspace dta", "did you mean data?"),
        ("job run --no-wait --repo https://h/x --task t --profile demo --workspace used", 1,
         "sandbox 1005 has it", "--workspace-wait 1h"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_its_remedy_and_changes_nothing(
    cli: Run, lab: Bench, line: str, status: int, says: str, hint: str
) -> None:
    before = everything(lab)
    got, out, err = cli(*line.split())
    assert (got, out) == (status, ""), err
    error, _, advice = err.partition("\nhint: ")
    assert error.startswith("error: ")
    assert says in error
    assert advice.strip(), err
    assert hint in advice
    assert everything(lab) == before

"""Bad input for sandboxes, through the real daemon: what is said, what to do, and nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.unit.daemon.bench import Bench, open_bench

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with open_bench(tmp_path_factory.mktemp("d")) as found:
        yield found


@pytest.fixture
def lab(bench: Bench, cli: Run, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A READY sandbox `box`, a STOPPED one `off` with snapshot `one`, and one that is no more."""
    monkeypatch.setenv("AGENTLAB_SOCKET", str(bench.world.config.socket))
    if cli("show", "box")[0] == 1:
        for line in (
            "new --profile demo --name box --vmid 1005",
            "new --profile demo --name off --vmid 1006",
            "stop off",
            "sandbox snapshot save off one",
            "new --profile demo --name gone --vmid 1007",
            "rm --yes gone",
        ):
            status, _, err = cli(*line.split())
            assert status == 0, err
    return bench


def everything(bench: Bench) -> list[list[tuple[object, ...]]]:
    with bench.store.read() as tx:
        return [
            [tuple(row) for row in tx.execute(f"SELECT * FROM {table}").fetchall()]
            for table in ("sandbox", "operation", "event")
        ]


@pytest.mark.parametrize(
    ("line", "status", "says", "hint"),
    [
        # a sandbox that is not there
        ("show 1009", 1, "cannot show a sandbox: no sandbox 1009", "did you mean 1006?"),
        ("show bxo", 1, "no sandbox bxo", "did you mean box?"),
        ("rm --yes 99999999999999999999", 1, "no sandbox 9999999999", "agentlab sandbox list"),
        ("start -1", 1, "no sandbox -1", ""),
        ("show ../../status", 1, "no sandbox ../../status", ""),
        # names, VMIDs, profiles
        ("new --profile demo --name box", 1, "there is one of that name already",
         "agentlab sandbox show box"),
        ("new --profile demo --vmid 1005", 1, "there is one with that VMID already",
         "leave --vmid out"),
        ("new --profile demo --vmid 9", 2, "cannot use VMID 9: sandboxes have 1000 to",
         "vmid_range"),
        ("new --profile demo --name Box_1", 2, "cannot use 'Box_1' as the name", "lower-case"),
        ("new --profile demo --name 1234", 2, "cannot use '1234' as the name", "a letter first"),
        ("new --profile dmeo", 1, "no profile dmeo", "did you mean demo?"),
        ("new --profile broken", 2, "cores", ""),
        ("new --profile demo --label =x", 2, "must be KEY=VALUE", ""),
        ("sandbox validate --profile demo --name box", 1, "there is one of that name", ""),
        # times
        *(
            (f"new --profile demo --ttl={ttl}", 2, f"cannot read the duration '{ttl}'",
             "write 90s, 30m, 4h or 2d; at most a year")
            for ttl in ("0", "0s", "-1", "-5m", "367d", "99999999999999999999h", "soon", "1e9", "")
        ),
        ("sandbox lease renew box --ttl 0", 2, "cannot read the duration '0'", "90s"),
        ("sandbox lease renew box --ttl 4h", 1, "sandbox lease not renewable: sandbox 1005 is READY",
         "agentlab sandbox exec 1005"),
        ("sandbox lease renew off --ttl 4h", 1, "sandbox lease not renewable: sandbox 1006 is STOPPED",
         "agentlab sandbox start 1006"),
        # states
        ("start box", 1, "cannot start sandbox 1005: it is READY", ""),
        ("stop off", 1, "cannot stop sandbox 1006: it is STOPPED", "agentlab sandbox start 1006"),
        ("sandbox pause off", 1, "cannot pause sandbox 1006: it is STOPPED", "start 1006"),
        ("sandbox resume box", 1, "cannot resume sandbox 1005: it is READY", ""),
        ("start gone", 1, "cannot start sandbox 1007: it is DESTROYED", "sandbox list --all"),
        ("rm --yes gone", 1, "failed to destroy sandbox 1007: it is DESTROYED already", "--all"),
        ("rm --force gone", 1, "failed to destroy sandbox 1007: it is DESTROYED already", "--all"),
        ("sandbox revert --yes gone", 1, "cannot revert sandbox 1007: it is DESTROYED", ""),
        ("sandbox update gone --label a=b", 1, "cannot update sandbox 1007: it is DESTROYED", ""),
        # snapshots
        ("sandbox snapshot save box two", 1, "cannot take a snapshot of sandbox 1005: it is READY",
         "agentlab sandbox stop 1005"),
        ("sandbox snapshot save off one", 1, "there is one of that name", "snapshot delete 1006 one"),
        *(
            (f"sandbox snapshot save off {name}", 2, f"cannot use '{name}' as the name of a snapshot",
             "use 2 to 40 letters, digits")
            for name in ("a", "1st", "a.b", "current", "ä1", "a" * 41, "../up")
        ),
        ("sandbox snapshot delete off clean", 1, "cannot delete snapshot clean", "destroy"),
        ("sandbox snapshot restore off b/c --yes", 2, "cannot use 'b/c' as the name", ""),
        # sizes
        ("sandbox update box --cores 1000", 2, "cores: must be from 1 to 128", ""),
        ("sandbox update box --memory 1M", 2, "memory: must be from 128 to", ""),
        ("sandbox update box --label .=x", 2, "label", ""),
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


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("sandbox snapshot delete off two --yes", "failed to delete snapshot two of sandbox 1006"),
        ("sandbox snapshot restore off two --yes", "failed to revert sandbox 1006"),
    ],
)
def test_snapshot_that_is_not_there_fails_by_name(
    cli: Run, lab: Bench, line: str, says: str
) -> None:
    status, out, err = cli(*line.split(), "--quiet")
    assert (status, out) == (1, "")
    assert f"error: {says}: " in err
    assert "no such snapshot" in err
    assert "hint: it has clean, one" in err
    assert "STOPPED" in cli("show", "off")[1]

"""The way to Proxmox by pvesh, with a stand-in that says what real pvesh said.

Outputs are those of pve-manager 8.2.4 (the same calls as in docs of the driver); how options are
read is asked of Perl's own Getopt::Long, which pvesh uses.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlab.errors import (
    AgentLabError,
    Busy,
    Internal,
    Invalid,
    NotFound,
    Unavailable,
    Unsupported,
)
from agentlab.hypervisor.proxmox import pvesh, pvesh_records
from agentlab.hypervisor.proxmox.pvesh import PveshTransport
from agentlab.hypervisor.proxmox.pvesh_records import render_launch
from agentlab.hypervisor.proxmox.pvesh_words import (
    parse_error,
    parse_value,
    render_call,
    render_parameters,
    subject_of,
)
from agentlab.hypervisor.proxmox.transport import (
    AgentSilent,
    Exists,
    LockTimeout,
    NoSuchVM,
    NotReached,
    Refused,
    ReplyLost,
)
from tests.waiting import ended, until

UPID = "UPID:pve:000056C8:0005AF1C:6B044E93:qmclone:9000:root@pam:"
CLONED = (
    "create full clone of drive ide2 (local:9000/vm-9000-cloudinit.qcow2)\n"
    "Formatting '/var/lib/vz/images/1072/vm-1072-cloudinit.qcow2', fmt=qcow2 size=4194304\n"
    f'"{UPID}"\n'
)
USAGE = "pvesh get <api_path> [OPTIONS] [FORMAT_OPTIONS]\n"
CLONE = ("POST", "/nodes/pve/qemu/9000/clone", {"newid": 1072})


class Stage:
    """Programs of the node, as shell texts, in front of PATH."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spool = path / "spool"
        (path / "bin").mkdir()

    def program(self, name: str, text: str) -> None:
        program = self.path / "bin" / name
        program.write_text(f"#!/bin/sh\nstage={shlex.quote(str(self.path))}\n{text}\n")
        program.chmod(0o755)

    def pvesh(self, text: str) -> None:
        self.program("pvesh", text)

    def transport(self) -> PveshTransport:
        return PveshTransport("pve", self.spool, scope=False)

    def wait_for(self, name: str) -> Path:
        until((self.path / name).exists)
        return self.path / name

    def records(self) -> list[Path]:
        return sorted(each for each in self.spool.iterdir() if each.is_dir())


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    stage = Stage(tmp_path)
    yield stage
    for record in stage.records() if stage.spool.exists() else []:
        words = (record / "begun").read_text().split() if (record / "begun").exists() else ["-"]
        if words[0].isdecimal() and not (record / "status").exists():
            try:
                os.killpg(int(words[0]), signal.SIGKILL)
            except ProcessLookupError:
                pass


# --- pure: what goes in and what comes out ---


@pytest.mark.parametrize(
    ("stdout", "value"),
    [
        ('{"release":"8.2","repoid":"faa83925c9641325","version":"8.2.4"}\n',
         {"release": "8.2", "repoid": "faa83925c9641325", "version": "8.2.4"}),
        ('"100"\n', "100"),
        ("[]\n", []),
        (CLONED, UPID),
        ("update VM 1070: -cores 2\n", None),
        ("", None),
        (f'transferred 1 of 1 MiB (100%)"{UPID}"\n', UPID),
        (("purging VM 1070 from related configurations..\n"
         '"UPID:pve:000056FB:0005B48A:6B044EA0:qmdestroy:1070:root@pam:"\n'),
         "UPID:pve:000056FB:0005B48A:6B044EA0:qmdestroy:1070:root@pam:"),
    ],
)  # fmt: skip
def test_the_value_is_on_the_last_line(stdout: str, value: object) -> None:
    assert parse_value(stdout.encode()) == value


@pytest.mark.parametrize(
    ("stderr", "status", "words", "errors"),
    [
        (("400 Parameter verification failed.\ntype: value 'bogus' does not have a value in the"
         f" enumeration 'vm, storage, node, sdn'\n{USAGE}"), 400,
         ("Parameter verification failed.; type: value 'bogus' does not have a value in the"
         " enumeration 'vm, storage, node, sdn'"),
         {"type": "value 'bogus' does not have a value in the enumeration 'vm, storage, node, sdn'"}),
        (("400 Parameter verification failed.\nvolume: invalid format - unable to parse volume ID"
         f" 'bogus'\n\n{USAGE}"), 400, ("Parameter verification failed.; volume: invalid format -"
         " unable to parse volume ID 'bogus'"),
         {"volume": "invalid format - unable to parse volume ID 'bogus'"}),
        (f"Unknown option: foo\n400 unable to parse option\n{USAGE}", 400,
         "Unknown option: foo; unable to parse option", {}),
        ("403 Permission check failed (/vms/100, VM.Clone)\n", 403,
         "Permission check failed (/vms/100, VM.Clone)", {}),
        ("Permission check failed\n", 403, "Permission check failed", {}),
        ("No 'get' handler defined for '/nosuch'\n", 501,
         "No 'get' handler defined for '/nosuch'", {}),
        ("storage 'nosuch' does not exist\n", 500, "storage 'nosuch' does not exist", {}),
        (("Wide character in die at /usr/share/perl5/PVE/RESTHandler.pm line 990.\nAgent error:"
         " Guest agent command failed\n"), 500, "Agent error: Guest agent command failed", {}),
        ("", 500, "", {}),
    ],
)  # fmt: skip
def test_what_an_error_output_means(
    stderr: str, status: int, words: str, errors: dict[str, str]
) -> None:
    said = parse_error(stderr.encode())
    assert (said.status, said.words, dict(said.errors)) == (status, words, errors)


def test_parameters_as_options() -> None:
    params = {"full": True, "purge": False, "newid": 7, "name": "a", "command": ["ls", "-l", ""]}
    assert render_parameters(params) == [
        "--full=1", "--purge=0", "--newid=7", "--name=a",
        "--command=ls", "--command=-l", "--command", "",
    ]  # fmt: skip


AWKWARD = ["-rf", "--help", "--", "@file", "a=b", "", "=", "two\nlines", "ä", " ", "'\"$(x)"]


@pytest.mark.skipif(shutil.which("perl") is None, reason="there is no Perl to ask")
def test_perl_reads_each_value_as_it_was_given() -> None:
    script = """
        use Getopt::Long; use JSON::PP;
        Getopt::Long::Configure('prefix_pattern=(--|-)');
        my %o; my @a = @ARGV;
        Getopt::Long::GetOptionsFromArray(\\@a, \\%o, 'command=s@', 'purge:s', 'name=s') or exit 1;
        print JSON::PP->new->encode([\\%o, \\@a]);
    """
    words = render_parameters({"command": AWKWARD, "purge": True, "name": "--purge"})
    done = subprocess.run(["perl", "-e", script, "--", *words], capture_output=True, check=True)
    assert json.loads(done.stdout) == [{"command": AWKWARD, "purge": "1", "name": "--purge"}, []]


@pytest.mark.parametrize(
    ("path", "params", "subject"),
    [
        ("/nodes/pve/qemu/9000/clone", {"newid": 1072}, "vm 1072"),
        ("/nodes/pve/qemu/1072/status/start", {}, "vm 1072"),
        ("/nodes/pve/qemu", {"vmid": 1070}, "vm 1070"),
        ("/nodes/pve/storage/local/content", {"filename": "vm-9-a.qcow2"},
         "volume local/vm-9-a.qcow2"),
        ("/nodes/pve/storage/local/content/local:9/vm-9-a.qcow2", {}, "volume local/vm-9-a.qcow2"),
        ("/nodes/pve/storage/lvm/content/lvm:vm-9-a", {}, "volume lvm/vm-9-a"),
        ("/pools/agents", {}, "/pools/agents"),
    ],
)  # fmt: skip
def test_the_subject_of_a_call(path: str, params: dict[str, str], subject: str) -> None:
    assert subject_of(path, params) == subject


def test_no_secret_goes_into_arguments() -> None:
    for key in ("password", "cipassword", "input-data"):
        with pytest.raises(Internal):
            render_call("PUT", "/nodes/pve/qemu/1/config", {key: "s3cret"})
    with pytest.raises(Internal):
        render_call("POST", "/nodes/pve/qemu/1/agent/file-write", {"content": "s3cret"})
    assert render_call("GET", "/nodes/pve/storage", {"content": "images"})


@pytest.mark.parametrize("path", ["", "-x", "nodes", "/nodes//pve", "/nodes/a b", "/nodes\n"])
def test_what_is_no_path_is_not_called(path: str) -> None:
    with pytest.raises(Internal):
        render_call("GET", path, {})


def test_what_is_no_parameter_is_not_sent() -> None:
    with pytest.raises(Internal):
        render_parameters({"-x": "1"})
    with pytest.raises(Invalid):
        render_parameters({"name": "a\0b"})


def test_under_systemd_a_call_has_a_scope_of_its_own() -> None:
    words = render_launch(["pvesh", "get", "/"], unit="17.vm-1")
    assert words[:7] == [
        "systemd-run", "--scope", "--quiet", "--collect",
        "--unit=agentlab-pvesh-17.vm-1.scope", "--", "/bin/sh",
    ]  # fmt: skip
    assert words[6:] == render_launch(["pvesh", "get", "/"], unit="")


# --- with a stand-in ---


def test_reading(stage: Stage) -> None:
    stage.pvesh("""echo "$@" >&2; echo '{"version":"8.2.4"}'""")
    assert stage.transport().call("GET", "/version") == {"version": "8.2.4"}
    assert stage.records() == []


def test_a_reading_call_is_ended_at_its_time_out(stage: Stage) -> None:
    stage.pvesh("sleep 60")
    with pytest.raises(Unavailable):
        stage.transport().call("GET", "/version", timeout=0.2)


def test_reading_what_is_no_json(stage: Stage) -> None:
    stage.pvesh("echo hello")
    with pytest.raises(Unavailable, match="not JSON"):
        stage.transport().call("GET", "/version")


def test_a_task_is_waited_for_and_its_upid_given(stage: Stage) -> None:
    stage.pvesh(f"echo \"$@\" > $stage/args; cat <<'END'\n{CLONED}END")
    assert stage.transport().call(*CLONE, timeout=10) == UPID
    args = (stage.path / "args").read_text().split()
    assert args == ["create", CLONE[1], "--output-format=json", "--newid=1072"]
    (record,) = stage.records()
    assert json.loads((record / "call").read_text())["what"] == "POST /nodes/pve/qemu/9000/clone"
    assert (record / "status").read_text() == "0\n"
    assert record.stat().st_mode & 0o777 == stage.spool.stat().st_mode & 0o777 == 0o700


def test_a_task_has_its_own_session_and_no_pipe_to_us(stage: Stage) -> None:
    stage.pvesh(
        "cut -d' ' -f6 /proc/$$/stat > $stage/session; "
        "files=$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2); "
        'echo "$files" > $stage/files; echo \'"x"\''
    )
    stage.transport().call(*CLONE, timeout=10)
    assert int((stage.path / "session").read_text()) != os.getsid(0)
    files = (stage.path / "files").read_text().split()
    (record,) = stage.records()
    assert files == ["/dev/null", str(record / "stdout"), str(record / "stderr")]


@pytest.mark.parametrize(
    ("stderr", "status", "error"),
    [
        (("400 Parameter verification failed.\nnewid: value is no VMID\n"
         "pvesh create <api_path> [OPTIONS] [FORMAT_OPTIONS]\n"), 2, Internal),
        ("403 Permission check failed (/vms/9000, VM.Clone)\n", 255, AgentLabError),
        ("unable to create VM 1072: config file already exists\n", 2, Exists),
        ("Configuration file 'nodes/pve/qemu-server/9000.conf' does not exist\n", 2, NoSuchVM),
        ("something new\n", 29, Refused),
        ("", 5, Refused),
        ("", 137, ReplyLost),
    ],
)  # fmt: skip
def test_errors(stage: Stage, stderr: str, status: int, error: type[Exception]) -> None:
    stage.pvesh(f"cat >&2 <<'END'\n{stderr}END\nexit {status}")
    with pytest.raises(error) as caught:
        stage.transport().call(*CLONE, timeout=10)
    assert "POST /nodes/pve/qemu/9000/clone" in str(caught.value)
    assert "FORMAT_OPTIONS" not in str(caught.value)


def test_the_field_of_a_400_is_named(stage: Stage) -> None:
    stage.pvesh("echo '400 Parameter verification failed.\nstorage: No such storage.' >&2; exit 2")
    with pytest.raises(NotFound, match="storage: No such storage"):
        stage.transport().call("GET", "/nodes/pve/storage/nosuch/status")


def test_without_pvesh_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    transport = PveshTransport("pve", tmp_path / "spool")
    for method in ("GET", "POST"):
        with pytest.raises(Unsupported) as caught:
            transport.call(method, "/version")
        assert "proxmox_backend: api" in caught.value.hint


def test_a_time_out_leaves_the_task_alone_and_the_next_call_waits_for_it(stage: Stage) -> None:
    stage.pvesh(
        "echo run >> $stage/runs; touch $stage/begun; while [ ! -e $stage/go ]; do sleep 0.02; done; echo '\"x\"'"
    )
    transport = stage.transport()
    with pytest.raises(Busy, match="still running") as caught:
        transport.call(*CLONE, timeout=0.3)
    assert not isinstance(caught.value, LockTimeout)
    (record,) = stage.records()
    assert caught.value.details["record"] == record.name
    stage.wait_for("begun")

    with pytest.raises(LockTimeout, match="POST /nodes/pve/qemu/9000/clone is still running"):
        transport.call("DELETE", "/nodes/pve/qemu/1072", timeout=0.2)
    assert (stage.path / "runs").read_text() == "run\n", "it was not begun"

    threading.Timer(0.2, (stage.path / "go").touch).start()
    assert transport.call("DELETE", "/nodes/pve/qemu/1072", timeout=10) == "x"
    assert (stage.path / "runs").read_text() == "run\nrun\n"
    assert (record / "status").read_text() == "0\n"


def test_another_subject_does_not_wait(stage: Stage) -> None:
    stage.pvesh('case "$*" in *1072*) sleep 30;; esac; echo \'"x"\'')
    transport = stage.transport()
    with pytest.raises(Busy):
        transport.call(*CLONE, timeout=0.1)
    assert transport.call("POST", CLONE[1], {"newid": 1073}, timeout=10) == "x"


def test_a_task_outlives_a_killed_daemon_and_the_next_daemon_waits_for_it(stage: Stage) -> None:
    stage.pvesh(
        "echo begin >> $stage/story; touch $stage/begun; "
        "while [ ! -e $stage/go ]; do sleep 0.02; done; echo end >> $stage/story; echo '\"x\"'"
    )
    program = (
        "import sys; from pathlib import Path;"
        "from agentlab.hypervisor.proxmox.pvesh import PveshTransport;"
        "PveshTransport('pve', Path(sys.argv[1]), scope=False)"
        ".call('POST', '/nodes/pve/qemu/9000/clone', {'newid': 1072}, timeout=60)"
    )
    daemon = subprocess.Popen([sys.executable, "-c", program, str(stage.spool)])
    stage.wait_for("begun")
    daemon.kill()
    daemon.wait()
    (record,) = stage.records()
    assert not (record / "status").exists()

    transport = stage.transport()
    with pytest.raises(LockTimeout):
        transport.call(*CLONE, timeout=0.2)
    threading.Timer(0.2, (stage.path / "go").touch).start()
    assert transport.call(*CLONE, timeout=10) == "x", "and it is a call of its own"
    assert (stage.path / "story").read_text().split() == ["begin", "end"] * 2
    assert (record / "status").read_text() == "0\n"


def test_a_task_that_is_killed_with_its_wrapper_is_a_lost_reply(stage: Stage) -> None:
    stage.pvesh("touch $stage/begun; sleep 30")
    caught: list[Exception] = []

    def call() -> None:
        try:
            stage.transport().call(*CLONE, timeout=20)
        except Unavailable as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    stage.wait_for("begun")
    (record,) = stage.records()
    os.killpg(int((record / "begun").read_text().split()[0]), signal.SIGKILL)
    ended(thread)
    assert [type(error) for error in caught] == [ReplyLost]
    stage.pvesh("echo '\"x\"'")
    assert stage.transport().call(*CLONE, timeout=10) == "x", "a dead call holds nobody up"


def test_a_pvesh_without_its_wrapper_still_counts_as_running(stage: Stage) -> None:
    stage.pvesh("touch $stage/begun; while [ ! -e $stage/go ]; do sleep 0.02; done; echo '\"x\"'")
    with pytest.raises(Busy):
        stage.transport().call(*CLONE, timeout=0.5)
    stage.wait_for("begun")
    (record,) = stage.records()
    os.kill(int((record / "begun").read_text().split()[0]), signal.SIGKILL)
    with pytest.raises(LockTimeout):
        stage.transport().call(*CLONE, timeout=0.3)
    threading.Timer(0.2, (stage.path / "go").touch).start()
    assert stage.transport().call(*CLONE, timeout=10) == "x"


def test_a_call_that_was_given_up_never_begins(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.pvesh("touch $stage/ran; echo '\"x\"'")
    transport = stage.transport()
    start = pvesh.render_launch
    monkeypatch.setattr(
        pvesh, "render_launch", lambda argv, unit: ["/bin/sh", "-c", "echo - > begun; exec \"$@\"",
                                                   "late", *start(argv, unit=unit)]
    )  # fmt: skip
    with pytest.raises(NotReached):
        transport.call(*CLONE, timeout=10)
    assert not (stage.path / "ran").exists()


def test_a_record_whose_daemon_died_before_it_began_is_given_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.pvesh("echo '\"x\"'")
    transport = stage.transport()
    transport.call(*CLONE, timeout=10)
    (record,) = stage.records()
    for name in ("begun", "status"):
        (record / name).unlink()
    with pytest.raises(LockTimeout):
        transport.call(*CLONE, timeout=0.05)
    monkeypatch.setattr(pvesh_records, "_START_WITHIN", 0)
    assert transport.call(*CLONE, timeout=10) == "x"
    assert (record / "begun").read_text() == "-\n"


def test_a_process_that_took_over_the_number_is_not_ours(stage: Stage) -> None:
    stage.pvesh("echo '\"x\"'")
    transport = stage.transport()
    transport.call(*CLONE, timeout=10)
    (record,) = stage.records()
    (record / "status").unlink()
    (record / "begun").write_text(f"{os.getpid()} 1\n")
    assert transport.call(*CLONE, timeout=5) == "x"


def test_two_of_one_subject_never_run_at_once(stage: Stage) -> None:
    stage.pvesh(
        'lock=$stage/lock.$(echo "$*" | tr -dc 0-9); mkdir $lock || echo double >> $stage/bad; '
        "sleep 0.05; rmdir $lock; echo '\"x\"'"
    )
    failed: list[BaseException] = []

    def work(newid: int) -> None:
        try:
            for _ in range(2):
                stage.transport().call("POST", CLONE[1], {"newid": newid}, timeout=30)
        except BaseException as error:  # noqa: BLE001  # shown by the assertion below
            failed.append(error)

    threads = [threading.Thread(target=work, args=(7000 + n % 3,)) for n in range(9)]
    for thread in threads:
        thread.start()
    ended(*threads)
    assert failed == []
    assert not (stage.path / "bad").exists()
    assert len(stage.records()) == 18


def test_finished_records_are_few_and_young_and_unfinished_ones_stay(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pvesh, "_KEEP", 3)
    stage.pvesh('case "$*" in *=1*) sleep 30;; esac; echo \'"x"\'')
    transport = stage.transport()
    with pytest.raises(Busy):
        transport.call("POST", CLONE[1], {"newid": 1}, timeout=0.1)
    (running,) = stage.records()
    os.utime(running, (0, 0))
    for newid in range(20, 29):
        transport.call("POST", CLONE[1], {"newid": newid}, timeout=10)
    assert running in stage.records()
    assert len(stage.records()) <= 6
    for record in stage.records():
        os.utime(record, (0, 0))
    stage.transport().call("POST", CLONE[1], {"newid": 30}, timeout=10)
    assert len(stage.records()) == 2


# --- other nodes ---


def test_a_failure_after_a_call_to_another_node_says_nothing_about_it(stage: Stage) -> None:
    stage.pvesh("echo 'malformed JSON string, neither tag, array, object' >&2; exit 255")
    with pytest.raises(ReplyLost):
        stage.transport().call("POST", "/nodes/other/qemu/9/status/start", timeout=10)
    stage.pvesh(
        "echo \"Configuration file 'nodes/other/qemu-server/9.conf' does not exist\" >&2; exit 2"
    )
    with pytest.raises(NoSuchVM):
        stage.transport().call("POST", "/nodes/other/qemu/9/status/start", timeout=10)


def test_a_list_cannot_go_to_another_node(stage: Stage) -> None:
    stage.pvesh("touch $stage/ran")
    with pytest.raises(Unsupported):
        stage.transport().call("POST", "/nodes/other/qemu/9/agent/exec", {"command": ["true"]})
    assert not (stage.path / "ran").exists()


# --- the guest agent ---


def test_stdin_of_a_guest_program_is_in_no_argument(stage: Stage) -> None:
    stage.program(
        "qm",
        "cat /proc/$$/cmdline > $stage/words; cat > $stage/stdin; printf '{\\n   \"pid\" : 124\\n}\\n'",
    )
    argv = ["/bin/sh", "-c", "cat >/run/x", "--timeout", ""]
    assert stage.transport().guest_exec("pve", 1001, argv, "s3cret\n", timeout=10) == 124
    words = (stage.path / "words").read_bytes().split(b"\0")[2:-1]
    head = b"guest exec 1001 --synchronous 0 --pass-stdin 1 --".split()
    assert words == [*head, *(word.encode() for word in argv)]
    assert (stage.path / "stdin").read_text() == "s3cret\n"


def test_without_stdin_it_is_pvesh_that_runs_a_guest_program(stage: Stage) -> None:
    stage.pvesh("""echo "$@" > $stage/args; echo '{"pid":108}'""")
    assert stage.transport().guest_exec("pve", 7, ["ls", "-l"], "", timeout=10) == 108
    args = (stage.path / "args").read_text().split()
    assert args[1:2] + args[3:] == ["/nodes/pve/qemu/7/agent/exec", "--command=ls", "--command=-l"]


def test_a_guest_on_another_node_is_out_of_reach(stage: Stage) -> None:
    with pytest.raises(Unsupported, match="other"):
        stage.transport().guest_exec("other", 7, ["true"], "x", timeout=10)


def test_errors_of_the_guest_agent(stage: Stage) -> None:
    def run(within: float = 30) -> None:
        stage.transport().guest_exec("pve", 7, ["true"], "x", timeout=within)

    stage.program("qm", "cat >&2 </dev/null; echo 'QEMU guest agent is not running' >&2; exit 255")
    with pytest.raises(AgentSilent):
        run()
    stage.program("qm", "echo '{}'")
    with pytest.raises(ReplyLost):
        run()
    stage.program("qm", "sleep 60")
    with pytest.raises(ReplyLost):
        run(within=0.5)


def test_agent_calls_do_not_wait_for_a_task_of_the_machine(stage: Stage) -> None:
    stage.pvesh('case "$2" in */shutdown) sleep 30;; esac; echo \'{"result":{}}\'')
    transport = stage.transport()
    with pytest.raises(Busy):
        transport.call("POST", "/nodes/pve/qemu/7/status/shutdown", timeout=0.1)
    answer = transport.call("POST", "/nodes/pve/qemu/7/agent/ping", timeout=10)
    assert answer == {"result": {}}


@pytest.mark.skipif(shutil.which("perl") is None, reason="there is no Perl to ask")
@pytest.mark.parametrize("unicode", ["0", "SDA"])
def test_bytes_of_a_guest_survive_perl(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, unicode: str
) -> None:
    """pvesh prints a string of bytes as JSON in UTF-8, each byte as the character of its number.

    `qm guest exec` printed the bytes as they are until it was changed to do the same; so its
    output is never asked for.
    """
    monkeypatch.setenv("PERL_UNICODE", unicode)
    program = stage.path / "bin" / "pvesh"
    program.write_text(
        "#!/usr/bin/env perl\nuse JSON::PP;\n"
        "print JSON::PP->new->utf8->encode({'out-data' => join('', map { chr } 0..255)}), qq{\\n};\n"
    )
    program.chmod(0o755)
    answer = stage.transport().call("GET", "/nodes/pve/qemu/7/agent/exec-status", {"pid": 1})
    assert isinstance(answer, dict)
    assert answer["out-data"].encode("latin-1") == bytes(range(256))

"""The transport over HTTPS, against a fake Proxmox and against servers that break off.

`Scripted` is a TLS server of a few lines that notes each request whole and does what the test
says: answers raw bytes, waits, or closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from fakepve.certs import make_cert
from fakepve.server import FakePve

from agentlab.clock import Deadline
from agentlab.errors import AgentLabError, Denied, Unavailable
from agentlab.hypervisor.proxmox import rest
from agentlab.hypervisor.proxmox.rest import RestTransport, Tls
from agentlab.hypervisor.proxmox.transport import Locked, NoSuchVM, NotReached, Refused, ReplyLost
from agentlab.secret import Secret
from tests.waiting import happened, until

TOKEN = ("root@pam!daemon", "01234567-89ab-cdef-0123-456789abcdef")
SECRET = Secret("=".join(TOKEN))


@dataclass(frozen=True)
class Certificate:
    cert: Path
    key: Path
    fingerprint: str


@dataclass
class Request:
    connection: int
    line: str
    headers: dict[str, str]
    body: str

    @property
    def form(self) -> list[tuple[str, str]]:
        return parse_qsl(self.body, keep_blank_values=True)


Act = Callable[[Request], bytes | None]  # None: no answer, the connection is closed


@dataclass
class Scripted:
    url: str
    act: Act
    requests: list[Request] = field(default_factory=list)
    after: Callable[[ssl.SSLSocket], None] | None = None  # what is done when an answer is out

    @property
    def connections(self) -> list[int]:
        return [request.connection for request in self.requests]


def ok(data: str = "null") -> bytes:
    return answer(200, "OK", f'{{"data":{data}}}')


def answer(
    status: int, reason: str, body: str = '{"data":null}', kind: str = "application/json"
) -> bytes:
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    cert, key, der = make_cert(tmp_path_factory.mktemp("tls"))
    found = hashlib.sha256(der).hexdigest().upper()
    pairs = ":".join(found[at : at + 2] for at in range(0, len(found), 2))
    return Certificate(Path(cert), Path(key), pairs)


def _read(stream: ssl.SSLSocket, number: int) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = stream.recv(65536)
        if not more:
            return None
        data += more
    head, body = data.split(b"\r\n\r\n", 1)
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += stream.recv(65536)
    return Request(number, first, headers, body.decode())


@contextlib.contextmanager
def _scripted(certificate: Certificate, host: str = "127.0.0.1") -> Iterator[Scripted]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.cert, certificate.key)
    listener = socket.create_server((host, 0))
    server = Scripted(f"https://{host}:{listener.getsockname()[1]}", lambda _: ok())
    ending = threading.Event()

    def talk(plain: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError), plain:
            plain.settimeout(120)
            with context.wrap_socket(plain, server_side=True) as stream:
                while (request := _read(stream, number)) is not None:
                    server.requests.append(request)
                    said = server.act(request)
                    if said is None:
                        return
                    stream.sendall(said)
                    if server.after:
                        server.after(stream)
                        return

    def listen() -> None:
        number = 0
        while not ending.is_set():
            with contextlib.suppress(OSError):
                plain, _ = listener.accept()
                number += 1
                threading.Thread(target=talk, args=(plain, number), daemon=True).start()

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield server
    finally:
        ending.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


@pytest.fixture
def scripted(certificate: Certificate) -> Iterator[Scripted]:
    with _scripted(certificate) as server:
        yield server


@pytest.fixture
def transport(scripted: Scripted, certificate: Certificate) -> Iterator[RestTransport]:
    with contextlib.closing(
        RestTransport(scripted.url, SECRET, Tls(ca_file=certificate.cert))
    ) as made:
        yield made


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is used again however long ago it was used before."""
    monkeypatch.setattr(rest, "KEPT_IDLE", 3600.0)


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# --- who is there, and who asks ---


@pytest.fixture(scope="module")
def fake(certificate: Certificate) -> Iterator[FakePve]:
    """A Proxmox of fakepve's, in a thread with an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(30)

    server = FakePve(host="127.0.0.1", port=0)
    server.apitokens[TOKEN[0]] = TOKEN[1]
    try:
        run(server.start(str(certificate.cert), str(certificate.key)))
        yield server
        run(server.stop())
        run(asyncio.sleep(0.2))  # the connections' own farewells
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextlib.contextmanager
def _to(server: FakePve | Scripted, tls: Tls, token: Secret = SECRET) -> Iterator[RestTransport]:
    with contextlib.closing(RestTransport(server.url, token, tls)) as transport:
        yield transport


def test_a_node_is_known_by_its_ca(fake: FakePve, certificate: Certificate) -> None:
    with _to(fake, Tls(ca_file=certificate.cert)) as transport:
        version = transport.call("GET", "/version")
        assert isinstance(version, dict)
        assert version["version"]


def test_a_missing_vm_is_told_in_proxmox_own_way(fake: FakePve, certificate: Certificate) -> None:
    said = r"GET /nodes/pve1/qemu/100/config: Configuration"
    known = Tls(ca_file=certificate.cert)
    with _to(fake, known) as transport, pytest.raises(NoSuchVM, match=said):
        transport.call("GET", "/nodes/pve1/qemu/100/config")


def test_a_wrong_token_is_denied(fake: FakePve, certificate: Certificate) -> None:
    wrong = Secret(f"{TOKEN[0]}=11111111-89ab-cdef-0123-456789abcdef")
    with _to(fake, Tls(ca_file=certificate.cert), wrong) as transport:
        with pytest.raises(Denied) as denied:
            transport.call("GET", "/version")
        assert "token" in denied.value.hint
        assert "11111111" not in f"{denied.value} {denied.value.details}"


def test_a_node_is_known_by_its_fingerprint_whatever_its_name(certificate: Certificate) -> None:
    with _scripted(certificate, "127.0.0.9") as server:
        for pairs in (certificate.fingerprint, certificate.fingerprint.lower()):
            tls = Tls(fingerprint=pairs)
            with _to(server, tls) as transport:
                transport.call("GET", "/version")
        tls = Tls(ca_file=certificate.cert)
        mismatch = "does not verify: IP address mismatch"
        with _to(server, tls) as transport, pytest.raises(Denied, match=mismatch):
            transport.call("GET", "/version")


def test_another_certificate_is_refused_before_the_token_is_sent(
    scripted: Scripted, certificate: Certificate
) -> None:
    other = ("00" if certificate.fingerprint[:2] != "00" else "01") + certificate.fingerprint[2:]
    for tls, why in ((Tls(), "does not verify"), (Tls(fingerprint=other), "is another one")):
        with _to(scripted, tls) as transport, pytest.raises(Denied, match=why) as denied:
            transport.call("POST", "/nodes/pve1/qemu")
        assert scripted.url.removeprefix("https://") in denied.value.message
        for remedy in ("CA", "fingerprint", "insecure"):
            assert remedy in denied.value.hint
    assert scripted.requests == []


def test_insecure_is_without_a_question_and_without_a_warning(scripted: Scripted) -> None:
    with _to(scripted, Tls(insecure=True)) as transport:
        transport.call("GET", "/version")
    assert len(scripted.requests) == 1


def test_the_environment_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    scripted: Scripted,
    certificate: Certificate,
) -> None:
    proxy = f"http://127.0.0.1:{_closed_port()}"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    monkeypatch.setenv("CURL_CA_BUNDLE", str(certificate.cert))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    tls = Tls(ca_file=certificate.cert)
    with _to(scripted, tls) as transport:
        transport.call("GET", "/version")
    with _to(scripted, Tls()) as unverified, pytest.raises(Denied):
        unverified.call("GET", "/version")
    assert scripted.requests[0].headers["authorization"] == f"PVEAPIToken={SECRET.reveal()}"


# --- what is sent ---


def test_parameters_of_get_and_delete_are_in_the_query(
    scripted: Scripted, transport: RestTransport
) -> None:
    params = {"type": "vm", "full": True, "purge": False, "delay": 5, "each": ["a b", "c&d"]}
    for method in ("GET", "DELETE"):
        transport.call(method, "/nodes/pve1/qemu/100", params)  # type: ignore[arg-type]
    for method, request in zip(("GET", "DELETE"), scripted.requests, strict=True):
        path, _, query = request.line.split(" ")[1].partition("?")
        assert request.line.startswith(f"{method} ")
        assert path == "/api2/json/nodes/pve1/qemu/100"
        assert parse_qsl(query) == [
            ("type", "vm"), ("full", "1"), ("purge", "0"), ("delay", "5"),
            ("each", "a b"), ("each", "c&d"),
        ]  # fmt: skip
        assert request.body == ""
        assert request.headers.get("content-length", "0") == "0"
        assert "transfer-encoding" not in request.headers


def test_parameters_of_post_and_put_are_a_form(
    scripted: Scripted, transport: RestTransport
) -> None:
    params = {"name": "ü & x", "full": True, "onboot": False, "empty": "", "tags": ("a", "b")}
    for method in ("POST", "PUT"):
        transport.call(method, "/nodes/pve1/qemu", params)  # type: ignore[arg-type]
        transport.call(method, "/nodes/pve1/qemu")  # type: ignore[arg-type]
    for request in (scripted.requests[0], scripted.requests[2]):
        assert request.headers["content-type"] == "application/x-www-form-urlencoded"
        assert request.form == [
            ("name", "ü & x"), ("full", "1"), ("onboot", "0"), ("empty", ""),
            ("tags", "a"), ("tags", "b"),
        ]  # fmt: skip
        assert "?" not in request.line
    for request in (scripted.requests[1], scripted.requests[3]):
        assert (request.body, request.headers["content-length"]) == ("", "0")


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/nodes/n/storage/s/content/s:13/vm-13-disk-9.qcow2",) * 2,
        ("/nodes/n/tasks/UPID:n:00004930:000546EB:6B044D88:qmstart:1:root@pam!b:/status",) * 2,
        ("/nodes/n/qemu/1/snapshot/a?b#c", "/nodes/n/qemu/1/snapshot/a%3Fb%23c"),
        ("/pools/a b%2F", "/pools/a%20b%252F"),
    ],
)
def test_names_in_a_path_stay_names(
    scripted: Scripted, transport: RestTransport, path: str, sent: str
) -> None:
    transport.call("GET", path)
    assert scripted.requests[0].line == f"GET /api2/json{sent} HTTP/1.1"


def test_a_program_in_the_guest_gets_its_words_and_its_stdin(
    scripted: Scripted, transport: RestTransport
) -> None:
    scripted.act = lambda _: ok('{"pid":"4711"}')
    assert transport.guest_exec("n", 100, ["sh", "-c", "a 'b c'"], "k=v\n", timeout=5) == 4711
    assert transport.guest_exec("n", 100, ["true"], "", timeout=5) == 4711
    assert scripted.requests[0].line == "POST /api2/json/nodes/n/qemu/100/agent/exec HTTP/1.1"
    assert scripted.requests[0].form == [
        ("command", "sh"), ("command", "-c"), ("command", "a 'b c'"), ("input-data", "k=v\n"),
    ]  # fmt: skip
    assert scripted.requests[1].form == [("command", "true")]
    scripted.act = lambda _: ok("null")
    with pytest.raises(ReplyLost, match="no pid"):
        transport.guest_exec("n", 100, ["true"], "", timeout=5)


def test_a_word_of_a_command_is_never_split(scripted: Scripted, transport: RestTransport) -> None:
    transport.call("POST", "/nodes/n/qemu/100/agent/exec", {"command": "a b"})
    assert scripted.requests[0].form == [("command", "a b")]


def test_nothing_that_is_sent_gets_into_the_log(
    scripted: Scripted, transport: RestTransport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("urllib3", "urllib3.connectionpool", "proxmoxer.core", "proxmoxer.backends.https"):
        caplog.set_level(logging.DEBUG, logger=name)
    transport.call("PUT", "/nodes/n/qemu/100/config", {"cipassword": "xyzzy"})
    transport.call("GET", "/nodes/n/qemu", {"hidden": "xyzzy"})
    scripted.act = lambda _: None
    for method in ("GET", "POST"):
        with pytest.raises(Unavailable) as lost:
            transport.call(method, "/n", {"hidden": "xyzzy"})  # type: ignore[arg-type]
        chain: BaseException | None = lost.value
        while chain is not None:
            assert "xyzzy" not in str(chain)
            chain = chain.__cause__
    assert "xyzzy" not in caplog.text
    assert TOKEN[1] not in caplog.text
    assert [record.name for record in caplog.records] == []


# --- connections ---


@pytest.mark.usefixtures("kept")
def test_one_connection_serves_calls_in_a_row(scripted: Scripted, transport: RestTransport) -> None:
    for _ in range(3):
        transport.call("GET", "/version")
        transport.call("POST", "/nodes/n/qemu")
    assert set(scripted.connections) == {1}


def test_an_idle_connection_is_not_used_again(
    scripted: Scripted, transport: RestTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]

    class Clock:
        """A Deadline whose time the test sets."""

        def __init__(self, seconds: float) -> None:
            self._at = now[0] + seconds

        after = classmethod(lambda cls, seconds: cls(seconds))

        @property
        def passed(self) -> bool:
            return now[0] >= self._at

    monkeypatch.setattr(rest, "Deadline", Clock)
    for pause in (0.0, 3.9, 3.9, 4.1, 3.9, 60.0):
        now[0] += pause
        transport.call("POST", "/nodes/n/qemu")
    assert scripted.connections == [1, 1, 1, 2, 2, 3]


@pytest.mark.usefixtures("kept")
def test_a_connection_is_not_used_again_after_an_error(
    scripted: Scripted, transport: RestTransport
) -> None:
    scripted.act = lambda request: answer(500, "no") if "bad" in request.line else ok()
    transport.call("GET", "/good")
    with pytest.raises(Refused, match=r"^GET /bad: no$"):
        transport.call("GET", "/bad")
    transport.call("GET", "/good")
    assert scripted.connections == [1, 1, 2]


@pytest.mark.usefixtures("kept")
def test_a_connection_is_not_used_for_ever(
    scripted: Scripted, transport: RestTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "KEPT_CALLS", 2)
    for _ in range(5):
        transport.call("GET", "/version")
    assert scripted.connections == [1, 1, 2, 2, 3]


def test_a_connection_that_the_server_closed_while_idle_harms_nobody(
    scripted: Scripted, transport: RestTransport
) -> None:
    closed = threading.Event()

    def close(stream: ssl.SSLSocket) -> None:
        stream.close()
        closed.set()

    scripted.after = close
    for _ in range(3):
        closed.clear()
        transport.call("POST", "/nodes/n/qemu")
        happened(closed)
    assert scripted.connections == [1, 2, 3]


@pytest.mark.usefixtures("kept")
def test_threads_share_the_connections(scripted: Scripted, transport: RestTransport) -> None:
    scripted.act = lambda request: ok(f'"{request.line.split("=")[1].split(" ")[0]}"')

    def ask(number: int) -> object:
        return transport.call("GET", "/echo", {"n": number})

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(64))) == [str(number) for number in range(64)]
    assert len(set(scripted.connections)) <= 8


# --- what breaks ---


def test_a_node_that_is_off_is_not_reached() -> None:
    server = Scripted(f"https://127.0.0.1:{_closed_port()}", lambda _: ok())
    said = r"cannot connect to 127\.0\.0\.1:\d+: Connection refused"
    with _to(server, Tls()) as transport, pytest.raises(NotReached, match=said) as failed:
        transport.call("POST", "/nodes/n/qemu")
    assert failed.value.hint


def test_what_does_not_speak_tls_is_not_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            plain, _ = listener.accept()
            with plain:
                plain.recv(1024)
                plain.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        server = Scripted(f"https://127.0.0.1:{listener.getsockname()[1]}", lambda _: ok())
        said = "does not speak TLS"
        with _to(server, Tls()) as transport, pytest.raises(NotReached, match=said):
            transport.call("POST", "/nodes/n/qemu")
        thread.join()


def test_a_handshake_that_takes_for_ever_is_not_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Scripted(f"https://127.0.0.1:{listener.getsockname()[1]}", lambda _: ok())
        said = "no answer in time"
        with _to(server, Tls()) as transport, pytest.raises(NotReached, match=said):
            transport.call("POST", "/nodes/n/qemu", timeout=0.2)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "GET"])
def test_a_request_without_an_answer_is_sent_once(
    scripted: Scripted, transport: RestTransport, method: str
) -> None:
    transport.call("GET", "/version")  # so that the connection is a kept one
    scripted.act = lambda _: None
    with pytest.raises(Unavailable, match="the connection broke") as lost:
        transport.call(method, "/nodes/n/qemu")  # type: ignore[arg-type]
    assert isinstance(lost.value, ReplyLost) == (method != "GET")
    assert not isinstance(lost.value, NotReached)
    time.sleep(0.1)
    assert len(scripted.requests) == 2


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",  # and then nothing
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{",
    ],
)
def test_a_slow_answer_is_lost_at_the_time_out(
    scripted: Scripted, transport: RestTransport, said: bytes
) -> None:
    for method, means in (("POST", ReplyLost), ("GET", Unavailable)):
        scripted.act = lambda _: ok()
        transport.call("GET", "/version")  # the handshake is not what is slow
        scripted.act = lambda _: said
        with pytest.raises(means, match=r"no answer within 0\.2 s") as late:
            transport.call(method, "/nodes/n/qemu", timeout=0.2)  # type: ignore[arg-type]
        assert type(late.value) is means
    until(lambda: len(scripted.requests) >= 4)
    assert len(scripted.requests) == 4


@pytest.mark.usefixtures("kept")
def test_an_answer_in_drops_ends_too(scripted: Scripted, transport: RestTransport) -> None:
    def drip(stream: ssl.SSLSocket) -> None:
        deadline = Deadline.after(60)
        while not deadline.passed:
            stream.sendall(b" ")
            time.sleep(0.02)

    transport.call("GET", "/version")
    scripted.act = lambda _: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n"
    scripted.after = drip
    with pytest.raises(ReplyLost, match="the answer took longer than 3 s"):
        transport.call("POST", "/nodes/n/qemu", timeout=3)


def test_an_answer_without_end_is_cut(
    scripted: Scripted, transport: RestTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "LARGEST_ANSWER", 1 << 20)
    scripted.act = lambda _: ok('"' + "x" * (2 << 20) + '"')
    with pytest.raises(Unavailable, match="larger than 1 MiB"):
        transport.call("GET", "/nodes/n/qemu")
    scripted.act = lambda _: ok()
    transport.call("GET", "/nodes/n/qemu")


@pytest.mark.parametrize(
    ("status", "reason", "means"),
    [
        (595, "No route to host", NotReached),
        (596, "Connection timed out", ReplyLost),
        (599, "Too many redirections", ReplyLost),
        (500, "VM is locked (backup)", Locked),
    ],
)
def test_a_status_of_pveproxy_keeps_its_meaning(
    scripted: Scripted,
    transport: RestTransport,
    status: int,
    reason: str,
    means: type[AgentLabError],
) -> None:
    scripted.act = lambda _: answer(status, reason, body="")
    with pytest.raises(means) as failed:
        transport.call("POST", "/nodes/n/qemu")
    assert failed.value.message == f"POST /nodes/n/qemu: {reason}"
    assert failed.value.details["status"] == status


def test_the_fields_of_a_400_are_told(scripted: Scripted, transport: RestTransport) -> None:
    body = '{"data":null,"errors":{"name":"invalid format\\n"}}'
    scripted.act = lambda _: answer(400, "Parameter verification failed.", body)
    with pytest.raises(AgentLabError, match=r"^POST /nodes/n/qemu: name: invalid format$"):
        transport.call("POST", "/nodes/n/qemu")


def test_a_reason_in_another_script_is_readable(
    scripted: Scripted, transport: RestTransport
) -> None:
    scripted.act = lambda _: answer(500, "storage 'Größe' does not exist")
    with pytest.raises(AgentLabError, match="'Größe'"):
        transport.call("GET", "/nodes/n/qemu")


@pytest.mark.parametrize(
    ("status", "reason", "body", "kind"),
    [
        (200, "OK", "<html>Sign in</html>", "text/html"),
        (502, "Bad Gateway", "<html>Bad Gateway</html>", "text/html; charset=utf-8"),
        (404, "Not Found", "<html>nginx</html>", "text/html"),
        (302, "Found", "", "text/html"),
        (204, "No Content", "", "text/plain"),
        (200, "OK", "[]", "application/json"),
        (200, "OK", '{"success":1}', "application/json"),
        (200, "OK", "[" * 100_000, "application/json"),
    ],
)
def test_an_answer_that_is_not_proxmox_own_is_told_by_its_status(
    scripted: Scripted, transport: RestTransport, status: int, reason: str, body: str, kind: str
) -> None:
    scripted.act = lambda _: answer(status, reason, body, kind)
    for method, means in (("GET", Unavailable), ("POST", ReplyLost)):
        with pytest.raises(means, match=rf"status {status} \({reason}\)") as strange:
            transport.call(method, "/nodes/n/qemu")  # type: ignore[arg-type]
        assert type(strange.value) is means
        assert strange.value.hint


def test_a_page_that_forbids_is_denied(scripted: Scripted, transport: RestTransport) -> None:
    scripted.act = lambda _: answer(403, "Forbidden", "<html>no</html>", "text/html")
    with pytest.raises(Denied):
        transport.call("GET", "/nodes/n/qemu")

"""Proxmox's API over HTTPS with an API token.

proxmoxer gives the session, the token's header and the address; how an answer is read, what of it
is an error and for how long a connection is kept is decided here.  Nothing is ever sent twice.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from proxmoxer.backends.https import Backend
from requests.adapters import HTTPAdapter
from urllib3 import HTTPSConnectionPool
from urllib3.connection import HTTPSConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.exceptions import SSLError as TlsError

from agentlab.clock import Deadline
from agentlab.errors import AgentLabError, Denied, Invalid, TooLarge, Unavailable
from agentlab.hypervisor.base import ExecResult
from agentlab.hypervisor.proxmox.transport import (
    Method,
    NotReached,
    Parameter,
    Parameters,
    ReplyLost,
    classify,
)
from agentlab.log import one_line
from agentlab.secret import Secret

# pveproxy closes a connection that was idle for 5 s, and every one after 100 requests.
KEPT_IDLE = 4.0
KEPT_CALLS = 90
CONNECT = 10.0  # seconds for TCP and TLS
LARGEST_ANSWER = 64 << 20
LARGEST_STDIN = 64 << 10  # Proxmox's own limit for `input-data`
_CONNECTIONS = 64  # more at one time are opened and not kept

_FINGERPRINT = re.compile(r"(?:[0-9A-Fa-f]{2}:){31}[0-9A-Fa-f]{2}")
_TOKEN = re.compile(
    r"(?P<user>[^\s:/!]+@[A-Za-z][\w.-]+)!(?P<name>[A-Za-z][\w.-]+)=(?P<value>[!-~]+)", re.ASCII
)
_REMEDIES = (
    "give the CA that signed it (/etc/pve/pve-root-ca.pem on a node), or the certificate's SHA-256 "
    "fingerprint (on the node's Certificates page), or, where nobody else can listen, say insecure"
)


@dataclass(frozen=True, slots=True)
class Tls:
    """How the node's certificate is verified: by the system's CAs when nothing is given.

    At most one of: `ca_file` (PEM), `fingerprint` (SHA-256 with colons, as Proxmox shows it; the
    name in the certificate does not matter then), `insecure` (not verified at all).
    """

    ca_file: Path | None = None
    fingerprint: str = ""
    insecure: bool = False


class RestTransport:
    """The Transport over HTTPS; its connections are shared by all threads."""

    name = "api"
    foreground = False

    def __init__(self, url: str, token: Secret, tls: Tls | None = None) -> None:
        """`url` is like https://pve1:8006, `token` holds user@realm!name=value.

        Invalid for a form that cannot be right, or a CA file that cannot be read.  The node is
        not asked for anything yet.
        """
        host, port = _parse_url(url)
        parts = _parse_token(token)
        tls = tls or Tls()
        _silence()
        self._host = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        backend = Backend(
            host,
            port=port,
            user=parts["user"],
            token_name=parts["name"],
            token_value=parts["value"],
            verify_ssl=True,
        )
        self._base: str = backend.get_base_url()
        self._session: requests.Session = backend.get_session()
        # Else REQUESTS_CA_BUNDLE, HTTPS_PROXY and ~/.netrc would override what the settings say.
        self._session.trust_env = False
        self._session.mount("https://", _Adapter(_context(tls), tls.fingerprint))

    def close(self) -> None:
        """Closes the connections that nobody uses at the moment."""
        self._session.close()

    def call(
        self, method: Method, path: str, params: Parameters | None = None, *, timeout: float = 30.0
    ) -> object:
        """See Transport.  Denied when the node's certificate does not verify."""
        what = f"{method} {path}"
        url = self._base + _quote(path)
        # As lists, since proxmoxer would split a plain `command` as a shell does.
        fields = {key: _texts(value) for key, value in (params or {}).items()}
        in_query = method in ("GET", "DELETE")  # a body with DELETE is a 501
        try:
            response = self._session.request(
                method,
                url,
                params=fields if in_query else None,
                data=None if in_query else fields,
                timeout=(min(CONNECT, timeout), timeout),
                allow_redirects=False,
                stream=True,
            )
            with response:
                body = _body(response, timeout)
        except _NotSentError as failed:
            raise self._not_sent(what, failed.cause) from failed.cause
        except (requests.RequestException, HTTPError, OSError) as failed:
            # The words of requests have the whole query in them; those of its cause do not.
            cause = _cause(failed)
            raise _lost(method, f"{what}: {_broken(failed, cause, timeout)}") from cause
        except _UnfitError as failed:
            raise _lost(method, f"{what}: {failed}") from None
        return _data(method, what, response, body)

    def guest_exec(
        self, node: str, vmid: int, argv: Sequence[str], stdin: str, *, timeout: float
    ) -> ExecResult | int:
        """See Transport: the pid.  TooLarge or Invalid when `stdin` is not what may be sent."""
        path = f"/nodes/{node}/qemu/{vmid}/agent/exec"
        if len(stdin) > LARGEST_STDIN:
            raise TooLarge(f"POST {path}: stdin has {len(stdin)} characters, of {LARGEST_STDIN}")
        if not stdin.isascii():
            raise Invalid(f"POST {path}: stdin is not plain ASCII, which the guest agent needs")
        params: dict[str, Parameter] = {"command": list(argv)}
        if stdin:
            params["input-data"] = stdin
        data = self.call("POST", path, params, timeout=timeout)
        pid = data.get("pid") if isinstance(data, Mapping) else None
        if not isinstance(pid, int | str) or not str(pid).isdecimal():
            raise ReplyLost(f"POST {path}: the answer has no pid")
        return int(pid)

    def _not_sent(self, what: str, cause: Exception) -> AgentLabError:
        origin = (isinstance(cause, HTTPError) and cause.__cause__) or cause  # the system's own
        said = one_line(getattr(origin, "strerror", None) or str(origin))
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = one_line(cause.verify_message)
            return Denied(
                f"{what}: the certificate of {self._host} does not verify: {why}", hint=_REMEDIES
            )
        if isinstance(cause, TlsError):  # native errors of TLS are ssl.SSLError: this is urllib3's
            return Denied(
                f"{what}: the certificate of {self._host} is another one: {one_line(str(cause))}",
                hint=_REMEDIES,
            )
        if isinstance(cause, ssl.SSLError):
            return NotReached(
                f"{what}: {self._host} does not speak TLS with us: {said}",
                hint="is it the address and the port of Proxmox (8006)?",
            )
        if isinstance(origin, TimeoutError):
            said = "no answer in time"
        return NotReached(
            f"{what}: cannot connect to {self._host}: {said}",
            hint="is the address right, the node on, and its pveproxy running?",
        )


class _NotSentError(Exception):
    """There was no connection, so that nothing of the request has been sent."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _UnfitError(Exception):
    """The answer is larger, or slower, than what is taken."""


class _Connection(HTTPSConnection):
    """A connection that is opened anew rather than used when the server may be closing it."""

    _calls = 0
    _spent = False
    _fresh: Deadline | None = None

    def connect(self) -> None:
        self._calls, self._spent, self._fresh = 0, False, None
        try:
            super().connect()
        except Exception as failed:
            raise _NotSentError(failed) from failed
        # What was asked for has been verified: no warning with each call when that is nothing.
        self.is_verified = True

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self._spent or self._calls >= KEPT_CALLS or (self._fresh and self._fresh.passed):
            self.close()
            self.connect()
        self._calls += 1
        super().request(*args, **kwargs)

    def getresponse(self) -> Any:
        response = super().getresponse()
        self._spent = response.status >= 400
        # The body is still to come; a connection that was kept too short costs a handshake only.
        self._fresh = Deadline.after(KEPT_IDLE)
        return response


class _Pool(HTTPSConnectionPool):
    ConnectionCls = _Connection


class _Adapter(HTTPAdapter):
    """Connections with our TLS context, whatever requests would take from elsewhere; no retries."""

    def __init__(self, context: ssl.SSLContext, fingerprint: str) -> None:
        self._tls: dict[str, Any] = {"ssl_context": context}
        if fingerprint:
            self._tls["assert_fingerprint"] = fingerprint
        super().__init__(pool_maxsize=_CONNECTIONS, max_retries=0)

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any
    ) -> None:
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs, **self._tls)
        self.poolmanager.pool_classes_by_scheme = {"https": _Pool}

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: bool | str, cert: Any = None
    ) -> Any:
        where, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return where, {}

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: requests would add its own bundle of CAs to the context."""


def _parse_url(url: str) -> tuple[str, int]:
    wrong = Invalid(
        f"{one_line(url)!r} is not the address of a Proxmox node", hint="like https://pve1:8006"
    )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 8006
    except ValueError:
        raise wrong from None
    rest = (parts.path.strip("/"), parts.query, parts.fragment, parts.username, parts.password)
    if parts.scheme != "https" or not host or any(rest):
        raise wrong
    return host, port


def _parse_token(token: Secret) -> dict[str, str]:
    found = _TOKEN.fullmatch(token.reveal())
    if found is None:
        raise Invalid(
            "the API token does not have the form user@realm!name=value",
            hint="as `pveum user token add` gives it: full-tokenid, an equals sign, value",
        )
    return found.groupdict()


def _context(tls: Tls) -> ssl.SSLContext:
    if (tls.ca_file is not None) + bool(tls.fingerprint) + tls.insecure > 1:
        raise Invalid("more than one of CA file, fingerprint and insecure is given", hint=_REMEDIES)
    if tls.fingerprint and not _FINGERPRINT.fullmatch(tls.fingerprint):
        raise Invalid(
            f"{one_line(tls.fingerprint)!r} is not a SHA-256 fingerprint",
            hint="32 pairs of hexadecimal digits with colons, as on the node's Certificates page",
        )
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
    except OSError as unreadable:  # ssl.SSLError is one too
        raise Invalid(
            f"cannot take the CA of Proxmox from {tls.ca_file}: {unreadable}",
            hint="copy /etc/pve/pve-root-ca.pem from a node, in PEM",
        ) from unreadable
    if tls.ca_file:
        # Proxmox's own CA has no key usage, which Python 3.13 would refuse; and the file may hold
        # the node's certificate itself.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if tls.fingerprint or tls.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _silence() -> None:
    """Keeps parameters out of the log: these libraries write them whole when turned up.

    What matters they raise, too.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("proxmoxer", "requests", "urllib3"):
            logging.getLogger(name).disabled = True


def _quote(path: str) -> str:
    """The path for the URL; `:`, `@`, `!` and `=` of volume ids and UPIDs stay as they are."""
    start, *names = path.split("/")
    if start or not names or any(name in ("", ".", "..") for name in names):
        raise Invalid(f"{one_line(path)!r} is not a path of Proxmox's API")
    return "".join("/" + quote(name, safe=":@!=,+~") for name in names)


def _texts(value: Parameter) -> list[str]:
    if isinstance(value, bool):
        return [str(int(value))]
    return [str(value)] if isinstance(value, str | int) else list(value)


def _body(response: requests.Response, timeout: float) -> bytes:
    until = Deadline.after(timeout)
    body = bytearray()
    # What has come is looked at at once: whole blocks may be long in coming.
    while chunk := response.raw.read1(1 << 16, decode_content=True):
        body += chunk
        if len(body) > LARGEST_ANSWER:
            raise _UnfitError(f"the answer is larger than {LARGEST_ANSWER >> 20} MiB")
        if until.passed:
            raise _UnfitError(f"the answer took longer than {timeout:g} s")
    return bytes(body)


def _data(method: Method, what: str, response: requests.Response, body: bytes) -> object:
    status = response.status_code
    said = _reason(response.reason or "")
    try:
        answer: object = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    foreign = "html" in response.headers.get("Content-Type", "")  # a proxy's page
    if status >= 400 and (not foreign or status in (401, 403)):
        errors = answer.get("errors") if isinstance(answer, Mapping) else None
        raise classify(what, status, said, errors if isinstance(errors, Mapping) else None)
    if status >= 300 or not isinstance(answer, Mapping) or "data" not in answer:
        raise _lost(
            method,
            f"{what}: an answer with status {status} ({one_line(said)}) that is not Proxmox's",
            hint="is the address that of a node's API, and what is between us and it?",
        )
    found: object = answer["data"]
    return found


def _reason(phrase: str) -> str:
    """http.client reads it as Latin-1; Proxmox writes UTF-8."""
    try:
        return phrase.encode("latin-1").decode()
    except UnicodeError:
        return phrase


def _lost(method: Method, message: str, *, hint: str = "") -> AgentLabError:
    """To read again does no harm; whether something was changed, only a look can tell."""
    return (Unavailable if method == "GET" else ReplyLost)(message, hint=hint)


def _cause(error: BaseException) -> BaseException:
    """The innermost error, which has no URL in its words."""
    for inner in (getattr(error, "reason", None), *error.args):
        if isinstance(inner, BaseException):
            return _cause(inner)
    return error


def _broken(error: Exception, cause: BaseException, timeout: float) -> str:
    if isinstance(error, requests.Timeout) or isinstance(cause, ReadTimeoutError | TimeoutError):
        return f"no answer within {timeout:g} s"
    return f"the connection broke: {one_line(str(cause))}"

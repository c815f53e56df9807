"""A stand-in for `pvesh`: takes what it takes, prints what it prints, and asks a ProxmoxNode.

It starts fast: the standard library only, and no package of ours.  Where the node is comes from the
environment (see commands.py).  Differences from the real one: tables have their columns in
alphabetical order, and exit statuses other than 0 are 2, 255 or 1 without the real one's rule.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import sys
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

VERBS = {"get": "GET", "create": "POST", "set": "PUT", "delete": "DELETE"}
FORMATS = ("text", "json", "json-pretty", "yaml")


class Node:
    """The node as root sees it: every call is one connection, and hanging up kills its tasks."""

    def __init__(self) -> None:
        self.url = urlsplit(os.environ["FAKE_PVE_URL"])
        self.name = os.environ["FAKE_PVE_NODE"]
        self.scale = float(os.environ["FAKE_PVE_SCALE"]) or 1.0
        self.tls = ssl.create_default_context(cafile=os.environ["FAKE_PVE_CA"])
        self.fresh = True

    def call(
        self, method: str, path: str, values: dict[str, Any], *, quiet: bool = False
    ) -> dict[str, Any]:
        """The answer; what a worker says goes to stdout and stderr meanwhile, unless `quiet`."""
        headers = {
            "Cookie": "PVEAuthCookie=" + os.environ["FAKE_PVE_TICKET"],
            "CSRFPreventionToken": os.environ["FAKE_PVE_CSRF"],
            "X-Foreground": "new" if self.fresh else "more",  # loading Perl takes its time, once
        }
        self.fresh = False
        body = urlencode(values, doseq=True)
        target = "/api2/json" + quote(path, safe="/:@!%")
        if method in ("GET", "DELETE"):
            target, body = target + ("?" + body if body else ""), ""
        else:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection = http.client.HTTPSConnection(
            str(self.url.hostname), self.url.port, context=self.tls
        )
        connection.request(method, target, body or None, headers)
        for line in connection.getresponse():
            told = json.loads(line)
            if "answer" in told:
                connection.close()
                return dict(told["answer"])
            if not quiet:
                for channel, text in told.items():
                    print(text, file=sys.stderr if channel == "err" else sys.stdout, flush=True)
        raise SystemExit("the node hung up")

    def children(self, path: str) -> list[str] | None:
        connection = http.client.HTTPSConnection(
            str(self.url.hostname), self.url.port, context=self.tls
        )
        cookie = "PVEAuthCookie=" + os.environ["FAKE_PVE_TICKET"]
        connection.request("GET", "/stand-in/ls?path=" + quote(path), headers={"Cookie": cookie})
        lines: list[str] | None = json.load(connection.getresponse())["lines"]
        connection.close()
        return lines


def options(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """`--key value`, `--key=value`, `-key value`; a key given again makes a list, one without a
    value is 1.  And the words that are no options."""
    values: dict[str, Any] = {}
    rest: list[str] = []
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            rest.append(word)
            continue
        key, found, value = word.lstrip("-").partition("=")
        if not found:
            value = words.pop(0) if words and not words[0].startswith("--") else "1"
        if key in values:
            before = values[key]
            values[key] = [*(before if isinstance(before, list) else [before]), value]
        else:
            values[key] = value
    return values, rest


def pretty(data: Any) -> str:
    """As Perl's JSON writes it."""
    return json.dumps(data, indent=3, sort_keys=True, separators=(",", " : "), ensure_ascii=False)


def table(rows: list[list[str]]) -> str:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]

    def rule(left: str, line: str, cross: str, right: str) -> str:
        return left + cross.join(line * (width + 2) for width in widths) + right

    def text(row: list[str]) -> str:
        cells = (f" {cell:<{width}} " for cell, width in zip(row, widths, strict=True))
        return "│" + "│".join(cells) + "│"

    lines = [rule("┌", "─", "┬", "┐"), text(rows[0]), rule("╞", "═", "╪", "╡")]
    for number, row in enumerate(rows[1:]):
        if number:
            lines.append(rule("├", "─", "┼", "┤"))
        lines.append(text(row))
    return "\n".join([*lines, rule("└", "─", "┴", "┘")])


def cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def show(data: Any, form: str) -> None:
    if data is None:
        return
    if form == "json":
        print(json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
    elif form == "json-pretty":
        print(pretty(data))
    elif isinstance(data, dict):
        print(table([["key", "value"], *([key, cell(data[key])] for key in sorted(data))]))
    elif isinstance(data, list):
        if data and all(isinstance(item, dict) for item in data):
            keys = sorted({key for item in data for key in item})
            print(table([keys, *([cell(item.get(key, "")) for key in keys] for item in data)]))
    else:
        print(cell(data))


def complain(answer: dict[str, Any], usage: str, verb: str = "", path: str = "") -> int:
    """What a refused call prints; its exit status."""
    status, reason = answer["status"], answer["reason"]
    if status == 501 and verb:
        print(f"No '{verb}' handler defined for '{path}'", file=sys.stderr)
        return 1
    if status == 400:
        print(f"400 {reason}", file=sys.stderr)
        for key, text in answer.get("errors", {}).items():
            print(f"{key}: {text}", file=sys.stderr)
        print(usage, file=sys.stderr)
        return 2
    print(f"{status} {reason}" if status == 403 else reason, file=sys.stderr)
    return 255 if reason.startswith("storage ") or "already exists on node" in reason else 2


def main(argv: list[str]) -> int:
    if not argv:
        print("ERROR: no command specified", file=sys.stderr)
        return 255
    verb, words = argv[0], argv[1:]
    values, rest = options(words)
    form = values.pop("output-format", "text")
    for noise in ("noproxy", "quiet", "human-readable", "noborder", "noheader"):
        values.pop(noise, None)
    if verb not in (*VERBS, "ls") or len(rest) != 1 or form not in FORMATS:
        print(f"ERROR: unknown command 'pvesh {' '.join(argv)}'", file=sys.stderr)
        return 255
    path = "/" + rest[0].strip("/")
    node = Node()
    if verb == "ls":
        for line in node.children(path) or []:
            print(line)
        return 0
    answer = node.call(VERBS[verb], unquote(path), values)
    if answer["status"] != 200:
        return complain(answer, f"pvesh {verb} <api_path> [OPTIONS] [FORMAT_OPTIONS]", verb, path)
    show(answer.get("data"), form)
    return 0

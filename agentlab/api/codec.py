"""JSON documents to dataclasses and back, with errors that name the path in the document."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from agentlab.errors import Invalid

T = TypeVar("T")

MAX_TEXT = 64 * 1024  # characters of a string field that says nothing else in its metadata
MAX_DEPTH = 20


def limit(most: int, **kwargs: Any) -> Any:
    """A dataclass field whose text may have at most `most` characters."""
    return dataclasses.field(metadata={"max": most}, **kwargs)


def at_most(entries: int) -> Mapping[str, int]:
    """The metadata of a dataclass field whose list may have so many entries."""
    return {"entries": entries}


def parse_document(body: bytes) -> object:
    """A JSON document from bytes; Invalid says where it is broken."""
    try:
        document: object = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise Invalid(f"cannot read the document: not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise Invalid(
            f"cannot read the document: {error.msg} at line {error.lineno} column {error.colno}"
        ) from error
    except RecursionError as error:
        raise Invalid("cannot read the document: nested too deeply") from error
    except ValueError as error:  # int() takes 4300 digits, no more
        raise Invalid("cannot read the document: a number is too long") from error
    return document


def _no_constant(name: str) -> object:
    raise Invalid(f"cannot read the document: {name} is not JSON")


def render_document(value: object) -> bytes:
    """A value of the API as one line of JSON."""
    return json.dumps(to_plain(value), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def to_plain(value: object) -> object:
    """Dataclasses, enums and addresses as what JSON has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(each) for each in value]
    if isinstance(value, StrEnum):
        return value.value
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def from_plain(kind: type[T], value: object, *, strict: bool = True) -> T:
    """A `kind` from a JSON value; Invalid names the path, like `repo.ref: must be a string`.

    `strict` refuses unknown keys (requests); without it they are ignored, so that an older
    client reads a newer daemon's answers.
    """
    return typing.cast(T, _read(kind, value, "", MAX_TEXT, strict, 0))


def _bad(path: str, why: str, hint: str = "") -> Invalid:
    return Invalid(f"{path or 'the document'}: {why}", hint=hint, details={"path": path})


_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def _read(kind: Any, value: object, path: str, most: int, strict: bool, depth: int) -> object:
    if depth > MAX_DEPTH:
        raise _bad(path, "nested too deeply")
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _read(args[0], value, path, most, strict, depth)
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise _bad(path, "must be a list")
        items = [
            _read(args[0], each, f"{path}[{at}]", most, strict, depth + 1)
            for at, each in enumerate(value)
        ]
        return items if origin is list else tuple(items)
    if origin is dict:
        if not isinstance(value, dict):
            raise _bad(path, "must be an object")
        return {
            key: _read(args[1], each, _join(path, key), most, strict, depth + 1)
            for key, each in value.items()
        }
    if kind is object:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_object(kind, value, path, strict, depth)
    return _read_scalar(kind, value, path, most)


def _read_scalar(kind: Any, value: object, path: str, most: int) -> object:
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        if not isinstance(value, str) or value not in list(kind):
            raise _bad(path, f"must be one of {', '.join(kind)}")
        return kind(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise _bad(path, f"must be {_NAMES.get(kind, kind.__name__)}")
    if isinstance(value, str):
        if len(value) > most:
            raise _bad(path, f"is longer than {most} characters")
        if "\0" in value:
            raise _bad(path, "must not contain a NUL character")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _bad(path, "must not contain lone surrogates") from error
    return value


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _read_object(kind: Any, value: object, path: str, strict: bool, depth: int) -> object:
    if not isinstance(value, dict):
        raise _bad(path, "must be an object")
    fields = {each.name: each for each in dataclasses.fields(kind)}
    if strict:
        for key in value:
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1)
                raise _bad(
                    _join(path, key), "unknown key", f"did you mean {near[0]}?" if near else ""
                )
    found = {}
    for name, each in fields.items():
        if name in value:
            _check_length(each, value[name], _join(path, name))
            most = each.metadata.get("max", MAX_TEXT)
            found[name] = _read(
                _hints(kind)[name], value[name], _join(path, name), most, strict, depth + 1
            )
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise _bad(_join(path, name), "is missing")
    return kind(**found)


def _check_length(field: dataclasses.Field[Any], value: object, path: str) -> None:
    """Before anything is built of it: a small text can be a list of very many empty things."""
    most = field.metadata.get("entries")
    if most is not None and isinstance(value, list) and len(value) > most:
        raise _bad(path, f"has more than {most} entries")

"""A directory that is one machine or one volume: the record in it says whose, and holds it alone."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

from agentlab.errors import NotFound, NotOurs, Unavailable
from agentlab.hypervisor.files import locked_directory, write_durable

LOCK_TIMEOUT = 120.0


class Owned(Protocol):
    """What every record has."""

    @property
    def owner(self) -> str: ...


R = TypeVar("R", bound=Owned)


@dataclass(frozen=True, slots=True)
class OwnedDir(ABC, Generic[R]):
    """It may be absent, or a stranger's; its name is the number of what it is."""

    path: Path

    noun: ClassVar[str]
    record_name: ClassVar[str]
    other_range: ClassVar[str]  # what to do about a stranger

    @abstractmethod
    def parse(self, content: bytes) -> R:
        """Raises ValueError for anything that `render` did not write."""

    @abstractmethod
    def render(self, record: R) -> bytes: ...

    @abstractmethod
    def number_of(self, record: R) -> int: ...

    @property
    def number(self) -> str:
        return self.path.name

    @property
    def what(self) -> str:
        return f"{self.noun} {self.number}"

    def read(self) -> R | None:
        """The record; None when there is none that we can understand.

        Raises Unavailable when the file is there and cannot be read.
        """
        try:
            record = self.parse((self.path / self.record_name).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        except OSError as error:
            raise Unavailable(f"cannot read {self.what}: {error.strerror}") from error
        return record if str(self.number_of(record)) == self.number else None

    def write(self, record: R) -> R:
        write_durable(self.path / self.record_name, self.render(record))
        return record

    def owned(self, owner: str, verb: str) -> R:
        """The record of what is there and carries this owner; NotFound, NotOurs."""
        record = self.read()
        if record is not None and record.owner == owner:
            return record
        if not self.path.exists():
            raise NotFound(f"cannot {verb} {self.what}: there is no such {self.noun}")
        raise NotOurs(
            f"cannot {verb} {self.what}: it belongs to "
            + (f"the installation {record.owner}" if record else "someone else"),
            hint=self.other_range,
        )

    @contextlib.contextmanager
    def locked(self, verb: str) -> Iterator[None]:
        """Holds it for one operation; NotFound when it is not there, or no longer."""
        with locked_directory(self.path, timeout=LOCK_TIMEOUT, verb=verb, what=self.what):
            yield

"""Secret values, which print as `***`, and the fingerprints under which they are stored."""

from __future__ import annotations

import hashlib
import hmac
import secrets


class Secret:
    """Holds a secret string; only `reveal()` gives it out, nothing prints it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    @classmethod
    def generate(cls) -> Secret:
        """256 bits from the system's generator, URL-safe text."""
        return cls(secrets.token_urlsafe(32))

    def reveal(self) -> str:
        return self._value

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex: what the store keeps instead of the value."""
        return fingerprint(self._value)

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash(self._value)


def fingerprint(value: str) -> str:
    """SHA-256 of a secret in hex; for secrets of full entropy only, never for passwords."""
    return hashlib.sha256(value.encode()).hexdigest()

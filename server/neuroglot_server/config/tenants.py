"""Tenants: names, quotas, permissions and token hashes, read from a TOML file.

The file has one table per tenant, and stores only the hashes of tokens:

    [tenants.alice]
    token_sha256 = ["5e88...", "9f86..."]   # several, so that one can be replaced while the other still works
    queue_tokens = 200_000                  # optional: maximum tokens in flight (queued or running)
    tokens_per_minute = 1_000_000           # optional: maximum rate
    calls = 64                              # optional: maximum concurrent calls; default: half of the server's
    may_manage_models = true                # optional: load and unload models

A token is 256 random bits, so a plain SHA-256 without salt protects it: it cannot be found with a dictionary.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from neuroglot.errors import NeuroglotError
from neuroglot_server.config.file_changes import FileChanges
from neuroglot_server.core import Quota

_logger = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")


class TenantsError(NeuroglotError):
    """A file of tenants that cannot be read or is invalid."""


@dataclass(frozen=True)
class Tenant:
    """A tenant of the server.

    Attributes:
        name: name in metrics and logs; empty if the server does not authenticate callers.
        quota: limits of the tenant.
        may_manage_models: whether the tenant may load and unload models.
        token_hashes: SHA-256 of the tenant's tokens, in hexadecimal digits.
    """

    name: str = ""
    quota: Quota = field(default_factory=Quota)
    may_manage_models: bool = False
    token_hashes: tuple[str, ...] = ()


class NewToken(NamedTuple):
    """A token, to be given to the tenant only, and its hash, for the file."""

    token: str
    sha256: str


def new_token() -> NewToken:
    """Generate a random token."""
    token = f"ng_{secrets.token_urlsafe(32)}"
    return NewToken(token, _hash(token))


class Tenants:
    """The tenants of a file, which is reloaded when it changes. While it is invalid, the last valid version applies."""

    def __init__(self, file: Path) -> None:
        """Read the file.

        Raises:
            TenantsError: the file cannot be read, or is invalid.
        """
        self._file = file
        self._changes = FileChanges([file])
        self._tenants = _read(file)

    def of_token(self, token: str) -> Tenant | None:
        """Return the tenant of a token, None if there is none. The comparison takes constant time."""
        given = _hash(token)
        found = None
        for tenant in self._current().values():
            for known in tenant.token_hashes:
                if hmac.compare_digest(given, known):
                    found = tenant
        return found

    def named(self, name: str) -> Tenant:
        """Return the tenant of this name; a tenant missing in the file has no quota and may not manage models."""
        return self._current().get(name, Tenant(name))

    def _current(self) -> dict[str, Tenant]:
        """Return the tenants of the file, reloaded if it has changed."""
        if self._changes.found():  # an invalid file is logged once, not once a second
            try:
                self._tenants = _read(self._file)
                _logger.info("reloaded %s: %d tenants", self._file, len(self._tenants))
            except TenantsError as error:
                _logger.error("%s: keeping the previous tenants", error)
        return self._tenants


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _read(file: Path) -> dict[str, Tenant]:
    """Read the tenants of a file, by name.

    Raises:
        TenantsError: the file cannot be read, or is invalid.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TenantsError(f"cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TenantsError(f"{file} is not valid TOML: {error}") from None
    tables = content.pop("tenants", None)
    if content or not isinstance(tables, dict):
        raise TenantsError(f"{file} has {', '.join(content) or 'nothing'}, expected tables [tenants.NAME] alone")
    tenants = {name: _tenant(file, name, table) for name, table in tables.items()}
    owners: dict[str, str] = {}
    for tenant in tenants.values():
        for known in tenant.token_hashes:
            if known in owners:
                raise TenantsError(
                    f"{file}: {owners[known]} and {tenant.name} have the same token: make a token for each"
                )
            owners[known] = tenant.name
    return tenants


_KEYS = ("token_sha256", "queue_tokens", "tokens_per_minute", "calls", "may_manage_models")


def _tenant(file: Path, name: str, table: object) -> Tenant:
    where = f"{file}: tenants.{name}"
    if not name or not name.isprintable():
        raise TenantsError(f"{where} is not a valid name, expected printable characters")
    if not isinstance(table, dict):
        raise TenantsError(f"{where} is {table!r}, expected a table")
    if unknown := [key for key in table if key not in _KEYS]:
        raise TenantsError(f"{where}.{unknown[0]} is unknown, expected one of {', '.join(_KEYS)}")
    hashes = table.get("token_sha256", [])
    if not isinstance(hashes, list) or not all(
        isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in hashes
    ):
        raise TenantsError(
            f"{where}.token_sha256 must be a list of hashes of 64 hexadecimal digits, in lower case: make a token and "
            f"its hash with `neuroglot token {name}`"
        )
    may_manage = table.get("may_manage_models", False)
    if not isinstance(may_manage, bool):
        raise TenantsError(f"{where}.may_manage_models is {may_manage!r}, expected true or false")
    quota = Quota(
        _positive(where, table, "queue_tokens"),
        _positive(where, table, "tokens_per_minute"),
        _positive(where, table, "calls"),
    )
    return Tenant(name, quota, may_manage, tuple(hashes))


def _positive(where: str, table: dict[str, object], key: str) -> int | None:
    value = table.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TenantsError(f"{where}.{key} is {value!r}, expected a whole number of at least 1")
    return value

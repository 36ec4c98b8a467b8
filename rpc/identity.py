"""Authentication and authorization of callers.

A Principal is found by a bearer token in a token file (Tokens). A server without a token file serves loopback only, and
every caller is ANONYMOUS. A delegate (the generation or training server, when it calls the registry) names the caller
that it acts for; the permissions of both are checked.
"""

import hashlib
import tomllib
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import structlog
from pseudoword.names import SEGMENT
from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from rpc.errors import Internal, PermissionDenied, Unauthenticated
from rpc.settings import SettingsError, explain

ON_BEHALF_OF = "x-pseudoword-on-behalf-of"  # JSON of the Principal for whom a delegate calls

Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[!-~]+$")]
Tenant = Annotated[str, StringConstraints(pattern=rf"^{SEGMENT}$")]


class Role(StrEnum):
    """The roles of a caller: WRITER includes READER, ADMIN includes both; DELEGATE may act for other callers."""

    READER = "reader"
    WRITER = "writer"
    ADMIN = "admin"
    DELEGATE = "delegate"


_IMPLIED = {
    Role.READER: frozenset({Role.READER, Role.WRITER, Role.ADMIN}),
    Role.WRITER: frozenset({Role.WRITER, Role.ADMIN}),
    Role.ADMIN: frozenset({Role.ADMIN}),
    Role.DELEGATE: frozenset({Role.DELEGATE}),
}


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Principal:
    """A caller. `tenants` None means all tenants; `on_behalf_of` is the caller that a delegate acts for."""

    name: Name
    tenants: frozenset[Tenant] | None
    roles: frozenset[Role]
    on_behalf_of: Optional["Principal"] = None

    def may(self, tenant: str, role: Role) -> bool:
        """Whether `require` would pass."""
        try:
            self.require(tenant, role)
        except PermissionDenied:
            return False
        return True

    def require(self, tenant: str, role: Role) -> None:
        """Raises PermissionDenied (TENANT_DENIED, ROLE_DENIED) unless this caller, and the caller that it acts for,
        have the tenant and the role."""
        if self.tenants is not None and tenant not in self.tenants:
            raise PermissionDenied(
                f"{self.name} may not use tenant {tenant!r}; its tenants: {', '.join(sorted(self.tenants)) or 'none'}",
                reason="TENANT_DENIED",
                metadata={"principal": self.name, "tenant": tenant},
            )
        self._require_role(role)
        if self.on_behalf_of is not None:
            self._require_role(Role.DELEGATE)
            self.on_behalf_of.require(tenant, role)

    def _require_role(self, role: Role) -> None:
        if not self.roles & _IMPLIED[role]:
            raise PermissionDenied(
                f"{self.name} needs the role {role}; its roles: {', '.join(sorted(self.roles)) or 'none'}",
                reason="ROLE_DENIED",
                metadata={"principal": self.name, "role": str(role)},
            )

    @property
    def caller(self) -> "Principal":
        """The original caller: the end of the chain of delegates, or this principal itself."""
        return self if self.on_behalf_of is None else self.on_behalf_of.caller


ANONYMOUS = Principal(name="anonymous", tenants=None, roles=frozenset(Role))

_ADAPTER: TypeAdapter[Principal] = TypeAdapter(Principal)


def to_json(principal: Principal) -> str:
    """The value of ON_BEHALF_OF for `principal`; ASCII."""
    return _ADAPTER.dump_json(principal, exclude_none=False).decode()


def from_json(text: str) -> Principal:
    """The inverse of to_json. Raises pydantic's ValidationError."""
    return _ADAPTER.validate_json(text)


def acting_for(delegate: Principal, text: str) -> Principal:
    """`delegate` with on_behalf_of read from a value of ON_BEHALF_OF.

    Raises Unauthenticated when the value is malformed, PermissionDenied when `delegate` lacks the role DELEGATE.
    """
    delegate._require_role(Role.DELEGATE)
    try:
        caller = _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise Unauthenticated(f"{ON_BEHALF_OF} is not a principal: {explain(error)}", reason="BAD_DELEGATION") from None
    return Principal(name=delegate.name, tenants=delegate.tenants, roles=delegate.roles, on_behalf_of=caller)


class _Token(BaseModel, extra="forbid", frozen=True):
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    name: Name
    tenants: list[Tenant] | tuple[Annotated[str, StringConstraints(pattern=r"^\*$")]]
    roles: list[Role]

    def principal(self) -> Principal:
        everything = tuple(self.tenants) == ("*",)
        return Principal(
            name=self.name, tenants=None if everything else frozenset(self.tenants), roles=frozenset(self.roles)
        )


class _TokenFile(BaseModel, extra="forbid", frozen=True):
    token: list[_Token]


@dataclass(frozen=True)
class _Stamp:
    """The state of the file that was read. A secret mounted by Kubernetes changes its inode, an edit its time."""

    inode: int
    modified_ns: int
    size: int


class Tokens:
    """The principals of a TOML file of hashed bearer tokens, read again whenever the file changes.

        [[token]]
        sha256 = "<sha256 of the token, hex>"
        name = "shop-backend"
        tenants = ["shop"]          # ["*"]: all
        roles = ["writer"]          # reader, writer, admin, delegate

    If the file later becomes invalid, an error is logged and the tokens read before stay valid.
    """

    def __init__(self, path: Path) -> None:
        """Raises SettingsError when the file is missing or malformed."""
        self._path = path
        try:
            self._stamp = self._stat()
            self._principals = _read(path)
        except OSError as error:
            raise SettingsError(f"token file {path}: {error.strerror}") from None

    def principal(self, token: str) -> Principal:
        """Raises Unauthenticated (TOKEN_UNKNOWN)."""
        self._reload()
        # The lookup is by hash, so its duration reveals nothing about a token.
        found = self._principals.get(hashlib.sha256(token.encode()).hexdigest())
        if found is None:
            raise Unauthenticated("the bearer token is not in this server's token file", reason="TOKEN_UNKNOWN")
        return found

    def _reload(self) -> None:
        try:
            stamp = self._stat()
            if stamp == self._stamp:
                return
            self._stamp = stamp  # also of an invalid file: one log line per change, not per call
            self._principals = _read(self._path)
            structlog.get_logger("rpc").info("token file reloaded", path=str(self._path))
        except (OSError, SettingsError) as error:
            structlog.get_logger("rpc").error(
                "token file invalid, the tokens read before stay valid", path=str(self._path), error=str(error)
            )

    def _stat(self) -> _Stamp:
        found = self._path.stat()
        return _Stamp(found.st_ino, found.st_mtime_ns, found.st_size)


def _read(path: Path) -> dict[str, Principal]:
    try:
        entries = _TokenFile.model_validate(tomllib.loads(path.read_text("utf-8"))).token
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"token file {path} is not TOML: {error}") from None
    except ValidationError as error:
        raise SettingsError(f"token file {path}: {explain(error)}") from None
    principals = {entry.sha256: entry.principal() for entry in entries}
    if len(principals) != len(entries):
        raise SettingsError(f"token file {path}: two entries have the same sha256")
    return principals


_current: ContextVar[Principal] = ContextVar("principal")


def current_principal() -> Principal:
    """The caller of the running rpc. Raises Internal outside of an rpc."""
    principal = _current.get(None)
    if principal is None:
        raise Internal("there is no caller: this code does not run within an rpc")
    return principal


def enter(principal: Principal) -> None:
    """Set the caller of this task's rpc. Called by the interceptor; each rpc has its own task."""
    _current.set(principal)

"""Resource names and words, as the protos define them. Pure."""

import re
from dataclasses import dataclass
from typing import ClassVar, Self

SEGMENT = r"[a-z][a-z0-9-]{0,62}"
LATEST = "latest"  # the newest version in use; computed, so no alias may have this name
PRODUCTION = "production"  # the alias of a word without alias and version

_SEGMENT = re.compile(SEGMENT)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_WORD = re.compile(
    rf"(?:(?P<tenant>{SEGMENT})/)?(?P<concept>{SEGMENT})(?:@(?:(?P<number>[1-9][0-9]{{0,17}})|(?P<alias>{SEGMENT})))?"
)


class InvalidName(ValueError):
    """A name that does not have the form of its resource. `str()` gives the expected form."""


def is_segment(text: str) -> bool:
    """Whether `text` may be the id of a tenant, concept, alias or evaluation."""
    return _SEGMENT.fullmatch(text) is not None


@dataclass(frozen=True, order=True)
class _Name:
    """A resource name: the fields, in order, fill the placeholders of `pattern`."""

    pattern: ClassVar[str]
    holes: ClassVar[dict[str, re.Pattern[str]]]

    def __init_subclass__(cls, *, pattern: str) -> None:
        cls.pattern = pattern
        kinds = {"version": _NUMBER, "picture": _DIGEST}
        cls.holes = {hole: kinds.get(hole, _SEGMENT) for hole in re.findall(r"{(\w+)}", pattern)}

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a name. Raises InvalidName when it has another form."""
        expected, given = cls.pattern.split("/"), text.split("/")
        fields: dict[str, str] = {}
        matches = len(expected) == len(given)
        for want, have in zip(expected, given, strict=False):
            if want.startswith("{"):
                hole = want[1:-1]
                matches = matches and cls.holes[hole].fullmatch(have) is not None
                fields[hole] = have
            else:
                matches = matches and want == have
        if not matches:
            shown = text if len(text) <= 100 else text[:100] + "..."
            raise InvalidName(f"{shown!r} is not of the form {cls.pattern} ({cls._rules()})")
        return cls(**{hole: int(value) if hole == "version" else value for hole, value in fields.items()})

    @classmethod
    def _rules(cls) -> str:
        rules = {_SEGMENT: SEGMENT, _NUMBER: "1, 2, 3, ...", _DIGEST: "64 hex digits"}
        return "; ".join(f"{hole}: {rules[pattern]}" for hole, pattern in cls.holes.items())

    def __str__(self) -> str:
        return self.pattern.format(**{hole: getattr(self, hole) for hole in self.holes})


@dataclass(frozen=True, order=True)
class TenantName(_Name, pattern="tenants/{tenant}"):
    """`tenants/{tenant}`"""

    tenant: str


@dataclass(frozen=True, order=True)
class ConceptName(_Name, pattern="tenants/{tenant}/concepts/{concept}"):
    """`tenants/{tenant}/concepts/{concept}`"""

    tenant: str
    concept: str


@dataclass(frozen=True, order=True)
class VersionName(_Name, pattern="tenants/{tenant}/concepts/{concept}/versions/{version}"):
    """`tenants/{tenant}/concepts/{concept}/versions/{n}`; `version` is the number n."""

    tenant: str
    concept: str
    version: int

    @property
    def parent(self) -> ConceptName:
        return ConceptName(self.tenant, self.concept)


@dataclass(frozen=True, order=True)
class AliasName(_Name, pattern="tenants/{tenant}/concepts/{concept}/aliases/{alias}"):
    """`tenants/{tenant}/concepts/{concept}/aliases/{alias}`"""

    tenant: str
    concept: str
    alias: str

    @property
    def parent(self) -> ConceptName:
        return ConceptName(self.tenant, self.concept)


@dataclass(frozen=True, order=True)
class EvaluationName(_Name, pattern="tenants/{tenant}/concepts/{concept}/versions/{version}/evaluations/{evaluation}"):
    """`tenants/{tenant}/concepts/{concept}/versions/{n}/evaluations/{evaluation}`"""

    tenant: str
    concept: str
    version: int
    evaluation: str

    @property
    def parent(self) -> VersionName:
        return VersionName(self.tenant, self.concept, self.version)


@dataclass(frozen=True, order=True)
class PictureName(_Name, pattern="tenants/{tenant}/pictures/{picture}"):
    """`tenants/{tenant}/pictures/{sha256}`; `picture` is the hex digest."""

    tenant: str
    picture: str


@dataclass(frozen=True, order=True)
class JobName(_Name, pattern="tenants/{tenant}/jobs/{job}"):
    """`tenants/{tenant}/jobs/{job}`"""

    tenant: str
    job: str


@dataclass(frozen=True, order=True)
class BatchName(_Name, pattern="tenants/{tenant}/batches/{batch}"):
    """`tenants/{tenant}/batches/{batch}`"""

    tenant: str
    batch: str


@dataclass(frozen=True, order=True)
class WordRef:
    """A word as it stands between angle brackets in a prompt: `[tenant/]concept[@alias|@n]`.

    At most one of `alias` and `version` is set. Without a tenant, the word belongs to the request's tenant; without
    alias and version it means the alias `production` if that is set, else the latest version.
    """

    tenant: str | None
    concept: str
    alias: str | None = None
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a word without its brackets. Raises InvalidName."""
        found = _WORD.fullmatch(text)
        if found is None:
            shown = text if len(text) <= 100 else text[:100] + "..."
            raise InvalidName(
                f"{shown!r} is not a word; it must be [tenant/]concept[@alias|@n], where tenant, concept and alias "
                f"match {SEGMENT}"
            )
        number = found["number"]
        return cls(found["tenant"], found["concept"], found["alias"], int(number) if number else None)

    def __str__(self) -> str:
        tenant = f"{self.tenant}/" if self.tenant else ""
        point = f"@{self.version}" if self.version is not None else f"@{self.alias}" if self.alias else ""
        return f"{tenant}{self.concept}{point}"

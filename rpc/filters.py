"""Compiles AIP-160 filters, such as `state = ACTIVE AND (labels.team:shop OR latest_version > 2)`, to SQL.

    filter      = sequence, {"AND", sequence};         OR binds tighter than AND, as in AIP-160
    sequence    = factor, {"OR", factor};
    factor      = ["NOT" | "-"], ("(", filter, ")" | restriction);
    restriction = field, comparator, value | field of labels, ":", "*";
    comparator  = "=" | "!=" | "<" | "<=" | ">" | ">=" | ":";
    value       = a word, or text in single or double quotes with backslash before quote and backslash

`:` means "contains" for text, and is the same as `=` for everything else; `labels.KEY:*` and `labels:KEY` hold when the
label exists. A restriction on an absent value does not hold, and its NOT does. Values become parameters of the SQL,
never part of its text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Any

from rpc.validate import Violations

MAX_LENGTH = 2_000
_MAX_DEPTH = 24
_MAX_RESTRICTIONS = 50
_COMPARATORS = ("<=", ">=", "!=", "=", "<", ">", ":")
_SQL = {"=": "=", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">=", ":": "="}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INT64 = range(-(2**63), 2**63)

_TOKEN = re.compile(
    r"""\s*(?:(?P<paren>[()])|(?P<comparator><=|>=|!=|=|<|>|:)|(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
    r"""|(?P<minus>-(?=[a-z(]))|(?P<word>[^\s()<>=!:"']+))""",
    re.DOTALL,
)
_VALUE = re.compile(r"""\s*(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|\s*(?P<word>[^\s()"']+)""", re.DOTALL)
_END = re.compile(r"\s*\Z")


class FilterInvalid(ValueError):
    """An invalid filter; the message gives the position and the expected syntax."""


class Kind(Enum):
    """The type of a field's values."""

    TEXT = auto()
    NUMBER = auto()  # whole, 64 bits
    TIME = auto()  # RFC 3339 in the filter, microseconds since 1970 UTC in the column
    ENUM = auto()  # full names in the column; in the filter with or without the prefix
    LABELS = auto()  # JSON object of text


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field that filters may name. `sql` is an expression of the query's row; `values` are an enum's full names."""

    kind: Kind
    sql: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Restriction:
    """`field` `comparator` `value`; `key` is a label's key. Value None: the label exists."""

    field: str
    key: str
    comparator: str
    value: str | int | None


@dataclass(frozen=True)
class Not:
    term: "Term"


@dataclass(frozen=True)
class And:
    terms: tuple["Term", ...]


@dataclass(frozen=True)
class Or:
    terms: tuple["Term", ...]


Term = Restriction | Not | And | Or


def parse(text: str, fields: Mapping[str, Field]) -> Term | None:
    """The filter as a tree, checked against `fields`; None for a blank filter. Raises FilterInvalid."""
    if len(text) > MAX_LENGTH:
        raise FilterInvalid(f"it has {len(text)} characters; at most {MAX_LENGTH} are allowed")
    return None if not text.strip() else _Parser(text, fields).whole()


def to_sql(term: Term | None, fields: Mapping[str, Field]) -> tuple[str, dict[str, Any]]:
    """The SQL condition and its named parameters (`f0`, `f1`, ...). For None, a condition that always holds."""
    parameters: dict[str, Any] = {}
    return ("1" if term is None else _compile(term, fields, parameters)), parameters


def compiled(text: str, fields: Mapping[str, Field]) -> tuple[str, dict[str, Any]]:
    """parse, then to_sql. Raises FilterInvalid."""
    return to_sql(parse(text, fields), fields)


def filtered(found: Violations, request: Any, fields: Mapping[str, Field]) -> tuple[str, dict[str, Any]]:
    """The request's filter as an SQL condition and its parameters. Adds a violation for an invalid filter."""
    return to_sql(parsed(found, request, fields), fields)


def parsed(found: Violations, request: Any, fields: Mapping[str, Field]) -> Term | None:
    """The request's filter as a tree. Adds a violation for an invalid filter."""
    try:
        return parse(request.filter, fields)
    except FilterInvalid as error:
        found.add("filter", str(error))
        return None


def required(term: Term | None) -> list[Restriction]:
    """The equalities that every matching row must fulfil, which an index can look up."""
    terms = term.terms if isinstance(term, And) else (term,)
    return [one for one in terms if isinstance(one, Restriction) and one.comparator == "=" and one.value is not None]


class _Parser:
    def __init__(self, text: str, fields: Mapping[str, Field]) -> None:
        self._text = text
        self._fields = fields
        self._at = 0
        self._depth = 0
        self._restrictions = 0

    def whole(self) -> Term:
        term = self._filter()
        if not _END.match(self._text, self._at):
            raise self._wrong("expected AND, OR or the end")
        return term

    def _filter(self) -> Term:
        terms = [self._sequence()]
        while self._take_word("AND"):
            terms.append(self._sequence())
        return terms[0] if len(terms) == 1 else And(tuple(terms))

    def _sequence(self) -> Term:
        terms = [self._factor()]
        while self._take_word("OR"):
            terms.append(self._factor())
        return terms[0] if len(terms) == 1 else Or(tuple(terms))

    def _factor(self) -> Term:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._wrong(f"the filter is nested deeper than {_MAX_DEPTH} levels")
        try:
            if self._take_word("NOT") or self._take("minus"):
                return Not(self._factor())
            if self._take("paren", "("):
                term = self._filter()
                if not self._take("paren", ")"):
                    raise self._wrong("expected a closing parenthesis")
                return term
            return self._restriction()
        finally:
            self._depth -= 1

    def _restriction(self) -> Restriction:
        self._restrictions += 1
        if self._restrictions > _MAX_RESTRICTIONS:
            raise self._wrong(f"the filter has more than {_MAX_RESTRICTIONS} comparisons")
        began = self._at
        path = self._take("word")
        if not path:
            raise self._wrong("expected a field")
        name, key = self._named(path, began)
        comparator = self._take("comparator")
        if not comparator:
            raise self._wrong(f"expected one of {' '.join(_COMPARATORS)} after {path}")
        match = _VALUE.match(self._text, self._at)
        if match is None:
            raise self._wrong("expected a value")
        began, self._at = self._at, match.end()
        quoted = match["quoted"]
        value = match["word"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted[1:-1], flags=re.DOTALL)
        if self._fields[name].kind is Kind.LABELS and not key:
            if comparator != ":":
                raise self._wrong(f"write {name}:KEY to test for a label, {name}.KEY to compare its value", began)
            return Restriction(field=name, key=value, comparator=":", value=None)
        if key and comparator == ":" and value == "*" and quoted is None:
            return Restriction(field=name, key=key, comparator=":", value=None)
        try:
            read = _read_value(self._fields[name], comparator, value)
        except FilterInvalid as error:
            raise self._wrong(f"{path}: {error}", began) from None
        return Restriction(field=name, key=key, comparator=comparator, value=read)

    def _named(self, path: str, at: int) -> tuple[str, str]:
        if path in self._fields:
            return path, ""
        name, _, key = path.partition(".")
        if key and name in self._fields and self._fields[name].kind is Kind.LABELS:
            return name, key
        known = ", ".join(f"{name}.KEY" if field.kind is Kind.LABELS else name for name, field in self._fields.items())
        raise self._wrong(f"unknown field {path[:60]}; the fields are {known}", at)

    def _take(self, group: str, text: str | None = None) -> str:
        """Consume the next token if it has this group (and this text); else return an empty string."""
        match = _TOKEN.match(self._text, self._at)
        if match is None or match.lastgroup != group or (text is not None and match[group] != text):
            return ""
        self._at = match.end()
        return match[group]

    def _take_word(self, word: str) -> bool:
        return bool(self._take("word", word))

    def _wrong(self, text: str, at: int | None = None) -> FilterInvalid:
        return FilterInvalid(f"at character {(self._at if at is None else at) + 1}: {text}")


def _read_value(field: Field, comparator: str, value: str) -> str | int:
    match field.kind:
        case Kind.NUMBER:
            if not re.fullmatch(r"-?[0-9]{1,19}", value) or int(value) not in _INT64:
                raise FilterInvalid(f"{value[:60]!r} is not a 64-bit integer")
            return int(value)
        case Kind.TIME:
            return _read_time(value)
        case Kind.ENUM:
            if comparator not in ("=", "!=", ":"):
                raise FilterInvalid(f"{comparator} is not supported for an enum; use = or !=")
            found = [full for full in field.values if full == value or full.endswith(f"_{value}")]
            if len(found) != 1:
                raise FilterInvalid(f"{value[:60]!r} is not one of {', '.join(field.values)}")
            return found[0]
        case _:
            return value


def _read_time(value: str) -> int:
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None or "T" not in value.upper():
        raise FilterInvalid(f"{value[:60]!r} is not a time such as 2026-01-31T12:00:00Z")
    return (time - _EPOCH) // timedelta(microseconds=1)


def _compile(term: Term, fields: Mapping[str, Field], parameters: dict[str, Any]) -> str:
    match term:
        case Not(inner):
            return f"NOT {_compile(inner, fields, parameters)}"
        case And(terms):
            return "(" + " AND ".join(_compile(inner, fields, parameters) for inner in terms) + ")"
        case Or(terms):
            return "(" + " OR ".join(_compile(inner, fields, parameters) for inner in terms) + ")"
        case Restriction():
            return _compile_restriction(term, fields[term.field], parameters)


def _compile_restriction(term: Restriction, field: Field, parameters: dict[str, Any]) -> str:
    def bound(value: Any) -> str:
        name = f"f{len(parameters)}"
        parameters[name] = value
        return f":{name}"

    sql = field.sql
    if field.kind is Kind.LABELS:
        sql = f"(SELECT value FROM json_each({field.sql}) WHERE key = {bound(term.key)})"
    if term.value is None:
        return f"({sql} IS NOT NULL)"
    if term.comparator == ":" and field.kind is Kind.TEXT:
        return f"coalesce(instr({sql}, {bound(term.value)}) > 0, 0)"
    # A comparison with an absent value is NULL, and NOT NULL is NULL again: make it false.
    return f"coalesce({sql} {_SQL[term.comparator]} {bound(term.value)}, 0)"

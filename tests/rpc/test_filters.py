"""Filters: parsing, meaning, errors. SQL selects the same rows as Python."""

import operator
import sqlite3
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from json import dumps
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc.filters import And, Field, FilterInvalid, Kind, Not, Or, Restriction, Term, compiled, parse

FIELDS = {
    "state": Field(kind=Kind.ENUM, sql="state", values=("STATE_ACTIVE", "STATE_DELETED")),
    "name": Field(kind=Kind.TEXT, sql="name"),
    "size": Field(kind=Kind.NUMBER, sql="size"),
    "made.time": Field(kind=Kind.TIME, sql="made_us"),
    "labels": Field(kind=Kind.LABELS, sql="labels"),
}
COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
Row = dict[str, Any]


def _selects(text: str, row: Row) -> bool:
    """Whether the database selects the row."""
    sql, parameters = compiled(text, FIELDS)
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE t (state, name, size, made_us, labels)")
    db.execute("INSERT INTO t VALUES (:state, :name, :size, :made_us, :labels)", row | {"labels": dumps(row["labels"])})
    found = db.execute(f"SELECT count(*) FROM t WHERE {sql}", parameters).fetchone()[0]
    db.close()
    return bool(found)


def _holds(term: Term | None, row: Row) -> bool:
    """Whether the term holds in Python."""
    match term:
        case None:
            return True
        case Not(inner):
            return not _holds(inner, row)
        case And(terms):
            return all(_holds(inner, row) for inner in terms)
        case Or(terms):
            return any(_holds(inner, row) for inner in terms)
        case Restriction():
            return _restriction_holds(term, row)


def _restriction_holds(term: Restriction, row: Row) -> bool:
    column = {"made.time": "made_us"}.get(term.field, term.field)
    value = row["labels"].get(term.key) if term.field == "labels" else row[column]
    if value is None:
        return False
    if term.value is None:
        return True
    if term.comparator == ":":
        return bool(term.value in value if term.field == "name" else term.value == value)
    return COMPARE[term.comparator](value, term.value)


_words = st.text(st.sampled_from("ab'\"\\ %_é漢-:()"), max_size=4)
_rows = st.fixed_dictionaries(
    {
        "state": st.sampled_from(["STATE_ACTIVE", "STATE_DELETED"]),
        "name": _words,
        "size": st.integers(-3, 3) | st.just(2**63 - 1),
        "made_us": st.integers(-3, 3).map(lambda seconds: seconds * 1_000_000) | st.none(),
        "labels": st.dictionaries(st.sampled_from(["a", "b-c"]), _words, max_size=2),
    }
)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


_any = st.sampled_from([*COMPARE, ":"])
_times = st.integers(-3, 3).map(lambda seconds: datetime.fromtimestamp(seconds, UTC).isoformat())
_atoms = st.one_of(
    st.builds(
        "{} {} {}".format,
        st.just("state"),
        st.sampled_from(["=", "!=", ":"]),
        st.sampled_from(["ACTIVE", "STATE_DELETED"]),
    ),
    st.builds("name{}{}".format, _any, _words.map(_quoted)),
    st.builds("size {} {}".format, _any, st.integers(-3, 3) | st.just(2**63 - 1)),
    st.builds("made.time{} {}".format, _any, _times),
    st.builds("labels.{} {} {}".format, st.sampled_from(["a", "b-c"]), _any, _words.map(_quoted)),
    st.sampled_from(["labels.a:*", "labels:b-c", 'labels:"a"']),
)
_filters = st.recursive(
    _atoms,
    lambda inner: st.one_of(
        st.builds("({})".format, inner),
        st.builds("NOT {}".format, inner.map("({})".format)),
        st.builds("-({})".format, inner),
        st.builds("{} AND {}".format, inner, inner),
        st.builds("{} OR {}".format, inner, inner),
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(text=_filters, row=_rows)
def test_compiled_sql_selects_the_same_rows_as_python(text: str, row: Row) -> None:
    assert _selects(text, row) == _holds(parse(text, FIELDS), row)


@settings(deadline=None)
@given(st.text(st.sampled_from("size=1 ()<>!:'\"\\-ANDORTa.\n"), max_size=40))
def test_any_text_is_parsed_or_rejected(text: str) -> None:
    try:
        sql, parameters = compiled(text, FIELDS)
    except FilterInvalid:
        return
    assert text.strip() == "" or parameters or "IS NOT NULL" in sql


def _is(field: str, value: str | int, comparator: str = "=") -> Restriction:
    return Restriction(field=field, key="", comparator=comparator, value=value)


def test_or_binds_closer_than_and() -> None:
    # AIP-160, unlike most languages.
    a, b, c = (_is("size", number) for number in (1, 2, 3))
    assert parse("size = 1 AND size = 2 OR size = 3", FIELDS) == And((a, Or((b, c))))
    assert parse("(size=1 AND size=2) OR size=3", FIELDS) == Or((And((a, b)), c))
    assert parse("NOT size=1 OR -size=2", FIELDS) == Or((Not(a), Not(b)))


def test_values_of_each_kind_are_parsed() -> None:
    assert parse("  ", FIELDS) is None
    assert parse("state = ACTIVE", FIELDS) == _is("state", "STATE_ACTIVE")
    assert parse("name = 'it\\'s \"so\"'", FIELDS) == _is("name", 'it\'s "so"')
    assert parse("name=a:b-c.d", FIELDS) == _is("name", "a:b-c.d")
    assert parse("size >= -5", FIELDS) == _is("size", -5, ">=")
    for time in ("1970-01-01T00:00:01Z", "1970-01-01T01:00:01+01:00", "'1970-01-01T00:00:01.000000Z'"):
        assert parse(f"made.time<{time}", FIELDS) == _is("made.time", 1_000_000, "<")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("size", "at character 5: expected one of <= >="),
        ("size = ", "expected a value"),
        ("= 1", "expected a field"),
        ("size = 1 size = 2", "AND, OR or the end"),
        ("size = 1 AND", "expected a field"),
        ("(size = 1", "a closing parenthesis"),
        ("size = 1)", "AND, OR or the end"),
        ("made = 1", "unknown field made; the fields are state, name, size, made.time, labels.KEY"),
        ("name.x = 1", "unknown field name.x"),
        ("size = x", "'x' is not a 64-bit integer"),
        ("size = 1.5", "'1.5' is not a 64-bit integer"),
        ("size = 9223372036854775808", "not a 64-bit integer"),
        ("state = GONE", "'GONE' is not one of STATE_ACTIVE, STATE_DELETED"),
        ("state < ACTIVE", "is not supported for an enum"),
        ("made.time = 2020-01-01", "is not a time such as"),
        ("made.time = 2020-01-01T00:00:00", "is not a time such as"),
        ("made.time = 2020-13-01T00:00:00Z", "is not a time such as"),
        ("labels = a", "labels:KEY to test for a label"),
        ("name = 'a", "expected a value"),
        ("(" * 30 + "size = 1" + ")" * 30, "nested deeper"),
        (" AND ".join(["size = 1"] * 51), "more than 50 comparisons"),
        ("x" * 2001, "2001 characters"),
    ],
)
def test_errors_name_the_problem_and_its_position(text: str, says: str) -> None:
    with pytest.raises(FilterInvalid) as refused:
        parse(text, FIELDS)
    assert says in str(refused.value)

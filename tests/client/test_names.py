"""Resource names and words: valid names round-trip, others are rejected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pseudoword.names import (
    SEGMENT,
    AliasName,
    BatchName,
    ConceptName,
    EvaluationName,
    InvalidName,
    JobName,
    PictureName,
    TenantName,
    VersionName,
    WordRef,
)

_segment = st.from_regex(rf"\A{SEGMENT}\Z")
_number = st.integers(1, 10**17)
_digest = st.from_regex(r"\A[0-9a-f]{64}\Z")
_names = st.one_of(
    st.builds(TenantName, _segment),
    st.builds(ConceptName, _segment, _segment),
    st.builds(VersionName, _segment, _segment, _number),
    st.builds(AliasName, _segment, _segment, _segment),
    st.builds(EvaluationName, _segment, _segment, _number, _segment),
    st.builds(PictureName, _segment, _digest),
    st.builds(JobName, _segment, _segment),
    st.builds(BatchName, _segment, _segment),
)
_words = st.one_of(
    st.builds(WordRef, st.none() | _segment, _segment, st.none() | _segment),
    st.builds(WordRef, st.none() | _segment, _segment, st.none(), _number),
)


@given(_names)
def test_names_round_trip(name: TenantName) -> None:
    assert type(name).parse(str(name)) == name


@given(_words)
def test_words_round_trip(ref: WordRef) -> None:
    assert WordRef.parse(str(ref)) == ref


@given(st.text(max_size=40))
def test_any_valid_word_is_written_unchanged(text: str) -> None:
    try:
        ref = WordRef.parse(text)
    except InvalidName:
        return
    assert str(ref) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tenants/",
        "tenants/A",
        "tenants/a/concepts/Rex",
        "tenants/a/concepts/" + "r" * 64,
        "tenants/a/concepts/rex\n",
        "tenants/a/concepts/../b",
        "tenants/a/concepts/rex/versions/1",
    ],
)
def test_malformed_concept_names_are_rejected(text: str) -> None:
    with pytest.raises(InvalidName) as caught:
        ConceptName.parse(text)
    assert "tenants/{tenant}/concepts/{concept}" in str(caught.value)


@pytest.mark.parametrize("text", ["0", "01", "-1", "1.0", "x", ""])
def test_malformed_version_numbers_are_rejected(text: str) -> None:
    with pytest.raises(InvalidName):
        VersionName.parse(f"tenants/a/concepts/b/versions/{text}")


@pytest.mark.parametrize("text", ["rex@0", "rex@", "@1", "a/b/c", "rex@1@2", "Rex", "rex ", "rex@01"])
def test_malformed_words_are_rejected(text: str) -> None:
    with pytest.raises(InvalidName):
        WordRef.parse(text)

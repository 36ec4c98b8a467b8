"""Collects all faults of a request, so that its client gets them in one error."""

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Protocol, Self, TypeVar

from pseudoword.names import InvalidName

from rpc.errors import InvalidArgument
from rpc.identity import Role, current_principal

_WHITE_SPACE = "\t\n\v\f\r\x85"  # the control characters that every tokenizer takes for a space
_MAX_LABELS = 64
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")


class _Parsed(Protocol):
    @classmethod
    def parse(cls, text: str) -> Self: ...


_Name = TypeVar("_Name", bound=_Parsed)


class Violations:
    """The faults of one request, by field."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, field: str, text: str) -> None:
        """Add a fault. `field` is its path in the request, such as `job.recipe.steps`; `text` says how to fix it."""
        self._found.append((field, text))

    def raise_if_any(self) -> None:
        """Raises InvalidArgument with all faults, if there are any."""
        if self._found:
            shown = "; ".join(f"{field}: {text}" for field, text in self._found[:3])
            more = f"; and {len(self._found) - 3} more" if len(self._found) > 3 else ""
            raise InvalidArgument(shown + more, violations=self._found)

    def name(self, kind: type[_Name], value: str, field: str) -> _Name:
        """The resource name in `value`. An invalid name raises immediately, with all faults so far, because nothing
        else can be checked without it."""
        try:
            return kind.parse(value)
        except InvalidName as error:
            self.add(field, str(error))
        self.raise_if_any()
        raise AssertionError("unreachable: a violation was added")

    def number(self, field: str, value: float, low: float, high: float) -> None:
        """`value` must be a number from `low` to `high`, both included."""
        if math.isnan(value) or not low <= value <= high:
            self.add(field, f"{value:g} is not between {low:g} and {high:g}")

    def text(self, field: str, value: str, max_bytes: int, *, required: bool = False, prose: bool = False) -> None:
        """`value` must fit `max_bytes` of UTF-8 and contain no control characters; in `prose`, line breaks and tabs are
        white space and therefore allowed. If `required`, it must not be blank."""
        size = len(value.encode("utf-8"))
        if size > max_bytes:
            self.add(field, f"{size} bytes of UTF-8 are more than the {max_bytes} allowed")
        if required and not value.strip():
            self.add(field, "is required")
        allowed = _WHITE_SPACE if prose else ""
        controls = (character for character in value if unicodedata.category(character) == "Cc")
        control = next((character for character in controls if character not in allowed), None)
        if control is not None:
            self.add(field, f"contains the control character U+{ord(control):04X}")

    def characters(self, field: str, value: str, most: int, *, required: bool = False, prose: bool = False) -> None:
        """`value` must have at most `most` characters, none a control character; `required` and `prose` as in text."""
        # A character has at most four bytes, so only the limit in characters can be reported, and only once.
        self.text(field, value[:most], 4 * most, required=required, prose=prose)
        if len(value) > most:
            self.add(field, f"{len(value)} characters are more than the {most} allowed")

    def labels(self, field: str, value: Mapping[str, str]) -> None:
        """At most 64 labels, keys `[a-z][a-z0-9_-]{0,62}`, values at most 63 characters."""
        if len(value) > _MAX_LABELS:
            self.add(field, f"{len(value)} labels are more than the {_MAX_LABELS} allowed")
        for key, content in list(value.items())[:_MAX_LABELS]:
            if not _LABEL_KEY.fullmatch(key):
                self.add(f"{field}[{key[:63]!r}]", f"a key must match {_LABEL_KEY.pattern}")
            self.characters(f"{field}[{key[:63]!r}]", content, 63)

    def request_id(self, request: Any) -> None:
        """`request_id` must be empty, or 1 to 64 printable characters."""
        value = request.request_id
        if len(value) > 64 or not value.isprintable():
            self.add("request_id", "must be at most 64 printable characters")


def admitted(found: Violations, kind: Any, value: str, field: str, role: Role) -> Any:
    """The resource name in `value`. Raises InvalidArgument, and PermissionDenied unless the caller has `role` in the
    name's tenant."""
    name = found.name(kind, value, field)
    current_principal().require(name.tenant, role)
    return name

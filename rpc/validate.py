"""Collects everything that is wrong with a request, so that its author learns it in one go."""

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Protocol, Self, TypeVar

from pseudoword.names import InvalidName

from rpc.errors import InvalidArgument
from rpc.identity import Role, current_principal

_MAX_LABELS = 64
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")


class _Parsed(Protocol):
    @classmethod
    def parse(cls, text: str) -> Self: ...


_Name = TypeVar("_Name", bound=_Parsed)


class Violations:
    """What is wrong with one request, field by field."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, field: str, text: str) -> None:
        """`field` is the path in the request, as `job.recipe.steps`; `text` says what would be right."""
        self._found.append((field, text))

    def raise_if_any(self) -> None:
        """Raises InvalidArgument with all that was found."""
        if self._found:
            shown = "; ".join(f"{field}: {text}" for field, text in self._found[:3])
            more = f"; and {len(self._found) - 3} more" if len(self._found) > 3 else ""
            raise InvalidArgument(shown + more, violations=self._found)

    def name(self, kind: type[_Name], value: str, field: str) -> _Name:
        """The resource name in `value`. A bad one raises at once (with all found so far): nothing works without it."""
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

    def text(self, field: str, value: str, max_bytes: int, *, required: bool = False) -> None:
        """`value` must fit `max_bytes` of UTF-8 and hold no control characters; `required`: not be blank."""
        size = len(value.encode("utf-8"))
        if size > max_bytes:
            self.add(field, f"{size} bytes of UTF-8 are more than the {max_bytes} allowed")
        if required and not value.strip():
            self.add(field, "is required")
        control = next((character for character in value if unicodedata.category(character) == "Cc"), None)
        if control is not None:
            self.add(field, f"holds the control character U+{ord(control):04X}")

    def characters(self, field: str, value: str, most: int, *, required: bool = False) -> None:
        """`value` has at most `most` characters, no control characters and, if `required`, something in it."""
        # A character is at most four bytes; what is too long is said in characters, once.
        self.text(field, value[:most], 4 * most, required=required)
        if len(value) > most:
            self.add(field, f"{len(value)} characters are more than the {most} allowed")

    def labels(self, field: str, value: Mapping[str, str]) -> None:
        """At most 64 labels, keys `[a-z][a-z0-9_-]{0,62}`, values at most 63 characters."""
        if len(value) > _MAX_LABELS:
            self.add(field, f"{len(value)} labels are more than the {_MAX_LABELS} allowed")
        for key, content in list(value.items())[:_MAX_LABELS]:
            if not _LABEL_KEY.fullmatch(key):
                self.add(f"{field}[{key[:63]!r}]", f"a key must be {_LABEL_KEY.pattern}")
            self.characters(f"{field}[{key[:63]!r}]", content, 63)

    def request_id(self, request: Any) -> None:
        """`request_id` is empty, or 1 to 64 printable characters."""
        value = request.request_id
        if len(value) > 64 or not value.isprintable():
            self.add("request_id", "must be at most 64 printable characters")


def admitted(found: Violations, kind: Any, value: str, field: str, role: Role) -> Any:
    """The resource name in `value`, whose tenant the caller may use in this role.

    Raises InvalidArgument, PermissionDenied.
    """
    name = found.name(kind, value, field)
    current_principal().require(name.tenant, role)
    return name

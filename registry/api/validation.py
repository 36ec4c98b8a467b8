"""Validation of fields that several requests share. All faults are added to the Violations."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from pseudoword.names import InvalidName, JobName, TenantName, VersionName
from pseudoword.registry.v1 import resources_pb2

from registry.catalogue.commands import ConceptFields
from rpc.validate import Violations

MAX_REASON = 500
_MAX_READERS = 256
_MAX_DESCRIPTION = 2_000
_MAX_DISPLAY_NAME = 200
_MAX_RECIPE_BYTES = 64 * 1024
_MAX_POINTS = 1_000
_MAX_PICTURES = 256
_MAX_PARENTS = 16
_MAX_SOFTWARE = 32
_MAX_SIGNATURES = 8
_MAX_METRICS = 64
_MAX_SECONDS = 100 * 366 * 86_400
_YEAR_1, _YEAR_9999 = -62_135_596_800, 253_402_300_799
_METRIC = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
DIGEST = re.compile(r"[0-9a-f]{64}")


def staleness(found: Violations, request: Any, field: str = "max_staleness") -> timedelta | None:
    """How old the answer may be; None: a strong read."""
    return duration(found, field, getattr(request, field)) if request.HasField(field) else None


def duration(found: Violations, field: str, value: Duration) -> timedelta:
    """A duration from zero to a hundred years."""
    if not (0 <= value.seconds <= _MAX_SECONDS and 0 <= value.nanos < 10**9):
        found.add(field, "must be a duration from zero to a hundred years")
        return timedelta(0)
    length: timedelta = value.ToTimedelta()
    return length


def time_us(found: Violations, field: str, value: Timestamp) -> int:
    """A time in microseconds since 1970 UTC."""
    if not (_YEAR_1 <= value.seconds <= _YEAR_9999 and 0 <= value.nanos < 10**9):
        found.add(field, "must be a time in the years 1 to 9999")
        return 0
    return value.seconds * 1_000_000 + value.nanos // 1_000


def masked(
    found: Violations, mask: FieldMask, has_mask: bool, allowed: Sequence[str], is_set: Mapping[str, bool]
) -> list[str]:
    """The fields to change: the fields of `allowed` in the mask (`*`: all); without a mask, the fields that are set."""
    if not has_mask:
        return [field for field in allowed if is_set[field]]
    if list(mask.paths) == ["*"]:
        return list(allowed)
    for path in mask.paths:
        if path not in allowed:
            found.add("update_mask", f"{path[:60]!r} cannot be updated; the mask can have {', '.join(allowed)}")
    return [field for field in allowed if field in mask.paths]


def readers(found: Violations, field: str, value: Sequence[str]) -> tuple[str, ...]:
    """The tenants with a grant for a concept, sorted, without duplicates."""
    if len(value) > _MAX_READERS:
        found.add(field, f"{len(value)} readers are more than the {_MAX_READERS} allowed")
    for index, name in enumerate(value[:_MAX_READERS]):
        _name(found, f"{field}[{index}]", TenantName, name)
    return tuple(sorted(set(value)))


def concept(found: Violations, field: str, value: resources_pb2.Concept) -> ConceptFields:
    """A concept's own fields; an unspecified kind becomes object."""
    found.characters(f"{field}.display_name", value.display_name, _MAX_DISPLAY_NAME)
    found.characters(f"{field}.description", value.description, _MAX_DESCRIPTION)
    found.labels(f"{field}.labels", value.labels)
    kind = value.kind or resources_pb2.CONCEPT_KIND_OBJECT
    if kind not in resources_pb2.ConceptKind.values():
        found.add(f"{field}.kind", f"{kind} is not a ConceptKind")
        kind = resources_pb2.CONCEPT_KIND_OBJECT
    return ConceptFields(
        display_name=value.display_name,
        description=value.description,
        kind=resources_pb2.ConceptKind.Name(kind),
        labels=dict(value.labels),
        readers=readers(found, f"{field}.readers", value.readers),
    )


def version(found: Violations, field: str, value: resources_pb2.Version) -> None:
    """A publisher's description of a version, except base_model, which is checked together with the tensors."""
    found.characters(f"{field}.description", value.description, _MAX_DESCRIPTION)
    found.labels(f"{field}.labels", value.labels)
    _provenance(found, f"{field}.provenance", value.provenance)
    _count(found, f"{field}.signatures", value.signatures, _MAX_SIGNATURES)
    for index, signature in enumerate(value.signatures[:_MAX_SIGNATURES]):
        at = f"{field}.signatures[{index}]"
        found.characters(f"{at}.algorithm", signature.algorithm, 100, required=True)
        found.characters(f"{at}.key_id", signature.key_id, 100, required=True)
        found.number(f"{at}.value", len(signature.value), 1, 1024)


def base_model(found: Violations, field: str, value: resources_pb2.BaseModel) -> None:
    """Names and digests of a base model."""
    found.characters(f"{field}.family", value.family, 100)
    found.characters(f"{field}.checkpoint", value.checkpoint, 200)
    for index, encoder in enumerate(value.encoders):
        if encoder.vocabulary_digest and not DIGEST.fullmatch(encoder.vocabulary_digest):
            found.add(f"{field}.encoders[{index}].vocabulary_digest", "must be 64 hex digits, or empty")


def _provenance(found: Violations, field: str, value: resources_pb2.Provenance) -> None:
    if value.origin not in resources_pb2.Provenance.Origin.values():
        found.add(f"{field}.origin", f"{value.origin} is not an Origin")
    if value.job:
        _name(found, f"{field}.job", JobName, value.job)
    if value.recipe_json:
        _recipe(found, f"{field}.recipe_json", value.recipe_json)
    if value.steps < 0:
        found.add(f"{field}.steps", "must not be negative")
    duration(found, f"{field}.training_time", value.training_time)
    found.characters(f"{field}.stop_reason", value.stop_reason, 100)
    found.characters(f"{field}.imported_format", value.imported_format, 40)
    _count(found, f"{field}.loss_curve", value.loss_curve, _MAX_POINTS)
    if not all(math.isfinite(point.loss) for point in value.loss_curve):
        found.add(f"{field}.loss_curve", "must hold finite losses")
    _count(found, f"{field}.picture_digests", value.picture_digests, _MAX_PICTURES)
    if not all(DIGEST.fullmatch(digest) for digest in value.picture_digests):
        found.add(f"{field}.picture_digests", "must each be 64 hex digits")
    _count(found, f"{field}.parents", value.parents, _MAX_PARENTS)
    for index, parent in enumerate(value.parents[:_MAX_PARENTS]):
        _name(found, f"{field}.parents[{index}]", VersionName, parent)
    _count(found, f"{field}.software", value.software, _MAX_SOFTWARE)
    for program, number in list(value.software.items())[:_MAX_SOFTWARE]:
        found.characters(f"{field}.software[{program[:40]!r}]", program, 100, required=True)
        found.characters(f"{field}.software[{program[:40]!r}]", number, 100)


def _recipe(found: Violations, field: str, value: str) -> None:
    if len(value.encode()) > _MAX_RECIPE_BYTES:
        found.add(field, f"must have at most {_MAX_RECIPE_BYTES} bytes")
        return
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        found.add(field, "must be JSON")


def evaluation(found: Violations, field: str, value: resources_pb2.Evaluation) -> None:
    """An evaluation: figures by name, the evaluator, the number of samples and a note."""
    found.characters(f"{field}.evaluator", value.evaluator, 200, required=True)
    found.characters(f"{field}.note", value.note, _MAX_DESCRIPTION)
    if not value.metrics:
        found.add(f"{field}.metrics", "is required")
    _count(found, f"{field}.metrics", value.metrics, _MAX_METRICS)
    for name, figure in list(value.metrics.items())[:_MAX_METRICS]:
        if not _METRIC.fullmatch(name):
            found.add(f"{field}.metrics[{name[:63]!r}]", f"a name must match {_METRIC.pattern}")
        if not math.isfinite(figure):
            found.add(f"{field}.metrics[{name[:63]!r}]", "must be finite")
    if value.samples < 0:
        found.add(f"{field}.samples", "must not be negative")


def quotas(found: Violations, field: str, value: resources_pb2.Quotas) -> None:
    """Quotas, which must not be negative."""
    for name in ("concepts", "versions_per_concept", "embedding_bytes"):
        if getattr(value, name) < 0:
            found.add(f"{field}.{name}", "must not be negative")


def display_name(found: Violations, field: str, value: str) -> None:
    """A name for people, of at most 200 characters."""
    found.characters(field, value, _MAX_DISPLAY_NAME)


def _count(found: Violations, field: str, value: Any, most: int) -> None:
    if len(value) > most:
        found.add(field, f"{len(value)} are more than the {most} allowed")


def _name(found: Violations, field: str, kind: Any, value: str) -> None:
    try:
        kind.parse(value)
    except InvalidName as error:
        found.add(field, str(error))

"""Converts rows and events of the catalogue to messages of the API."""

from collections.abc import Mapping
from json import dumps
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pseudoword.names import AliasName, ConceptName, EvaluationName, TenantName, VersionName
from pseudoword.registry.v1 import resources_pb2

from storage.ledger.entry import Revision
from storage.ledger.state_machine import CommittedEvent

Row = Mapping[str, Any]


def to_json(message: Message) -> dict[str, Any]:
    """A message as protobuf's JSON, with the fields' names in the proto."""
    found: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return found


def tenant(row: Row, revision: Revision) -> resources_pb2.Tenant:
    message = resources_pb2.Tenant(
        name=str(TenantName(row["tenant"])),
        display_name=row["display_name"],
        usage=resources_pb2.Usage(
            concepts=row["concepts"], versions=row["versions"], embedding_bytes=row["embedding_bytes"]
        ),
        etag=row["etag"],
        revision=str(revision),
    )
    names = ("concepts", "versions_per_concept", "embedding_bytes")
    if any(row[f"quota_{name}"] for name in names):
        message.quotas.CopyFrom(resources_pb2.Quotas(**{name: row[f"quota_{name}"] for name in names}))
    _set_time(message.create_time, row["create_us"])
    _set_time(message.update_time, row["update_us"])
    return message


def concept(row: Row, revision: Revision) -> resources_pb2.Concept:
    message = resources_pb2.Concept(
        name=str(ConceptName(row["tenant"], row["concept"])),
        display_name=row["display_name"],
        description=row["description"],
        kind=resources_pb2.ConceptKind.Value(row["kind"]),
        labels=row["labels"],
        readers=row["readers"],
        state=resources_pb2.Concept.State.Value(row["state"]),
        latest_version=row["latest"],
        version_count=row["count"],
        aliases=row["aliases"],
        creator=row["creator"],
        etag=row["etag"],
        revision=str(revision),
    )
    for field in ("create", "update", "delete", "purge"):
        _set_time(getattr(message, f"{field}_time"), row[f"{field}_us"])
    return message


def version(row: Row, revision: Revision) -> resources_pb2.Version:
    """A Version without loss curve and recipe, which are in the version's record."""
    message = ParseDict(row["summary"], resources_pb2.Version())
    message.name = version_name(row, row["number"])
    message.number = row["number"]
    message.tensors_digest = row["tensors_digest"]
    message.blob_digest = row["blob_digest"]
    message.size_bytes = row["size"]
    message.state = resources_pb2.Version.State.Value(row["state"])
    message.yank_reason = row["yank_reason"]
    message.creator = row["creator"]
    _set_time(message.create_time, row["create_us"])
    message.aliases.extend(row["aliases"])
    message.etag = row["etag"]
    message.revision = str(revision)
    return message


def evaluation(row: Row, revision: Revision) -> resources_pb2.Evaluation:
    message = ParseDict(row["body"], resources_pb2.Evaluation())
    message.name = str(EvaluationName(row["tenant"], row["concept"], row["number"], row["evaluation"]))
    message.creator = row["creator"]
    message.revision = str(revision)
    _set_time(message.create_time, row["create_us"])
    return message


def alias(row: Row, revision: Revision) -> resources_pb2.Alias:
    message = resources_pb2.Alias(
        name=str(AliasName(row["tenant"], row["concept"], row["alias"])),
        version=version_name(row, row["version"]),
        updater=row["on_behalf_of"] or row["actor"],
        etag=row["etag"],
        revision=str(revision),
    )
    _set_time(message.update_time, row["time_us"])
    return message


def alias_change(row: Row) -> resources_pb2.AliasChange:
    message = resources_pb2.AliasChange(
        version=version_name(row, row["version"]),
        previous_version=version_name(row, row["previous"]),
        actor=row["actor"],
        on_behalf_of=row["on_behalf_of"],
        reason=row["reason"],
        revision=row["etag"],
    )
    _set_time(message.change_time, row["time_us"])
    return message


def event(event: CommittedEvent) -> resources_pb2.Event:
    body = event.body
    message = resources_pb2.Event(
        revision=str(event.revision),
        type=event_type(event.kind),
        resource=body["name"],
        actor=event.actor,
        on_behalf_of=event.on_behalf_of,
        version=body.get("version", ""),
        readers=body.get("readers", ()),
    )
    _set_time(message.event_time, event.time_us)
    return message


def audit_record(event: CommittedEvent) -> resources_pb2.AuditRecord:
    body = event.body
    message = resources_pb2.AuditRecord(
        revision=str(event.revision),
        type=event_type(event.kind),
        resource=body["name"],
        actor=event.actor,
        on_behalf_of=event.on_behalf_of,
        peer=body["peer"],
        request_id=event.request_id,
        change_json=dumps(body, sort_keys=True, ensure_ascii=False),
    )
    _set_time(message.event_time, event.time_us)
    return message


def event_type(kind: str) -> "resources_pb2.Event.Type.ValueType":
    """The API's type of an event kind: `alias-set` is TYPE_ALIAS_SET."""
    return resources_pb2.Event.Type.Value("TYPE_" + kind.upper().replace("-", "_"))


def version_name(row: Row, number: int) -> str:
    """The resource name of a version of the row's concept; empty for 0."""
    return str(VersionName(row["tenant"], row["concept"], number)) if number else ""


def _set_time(timestamp: Timestamp, microseconds: int | None) -> None:
    if microseconds is not None:
        timestamp.FromMicroseconds(microseconds)

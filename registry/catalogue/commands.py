"""The commands of the catalogue, validated as far as possible without its state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pseudoword.names import AliasName, ConceptName, EvaluationName, TenantName, VersionName


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """Quotas of one tenant; 0 means the server's default. `embedding_bytes`: total size of its stored embeddings."""

    concepts: int = 0
    versions_per_concept: int = 0
    embedding_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Command:
    """`peer` is the network address of the caller, kept for the audit trail."""

    peer: str


@dataclass(frozen=True, kw_only=True)
class CreateTenant(Command):
    name: TenantName
    display_name: str
    quotas: Quotas


@dataclass(frozen=True, kw_only=True)
class UpdateTenant(Command):
    """`fields` has the new values, by name: of `display_name` and of members of Quotas."""

    name: TenantName
    fields: Mapping[str, Any]
    etag: str


@dataclass(frozen=True, kw_only=True)
class ConceptFields:
    """`kind` is the name of a ConceptKind; `readers` are names of tenants, sorted."""

    display_name: str
    description: str
    kind: str
    labels: Mapping[str, str]
    readers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CreateConcept(Command):
    name: ConceptName
    fields: ConceptFields


@dataclass(frozen=True, kw_only=True)
class UpdateConcept(Command):
    """`fields` has the new values of members of ConceptFields, by name."""

    name: ConceptName
    fields: Mapping[str, Any]
    etag: str


@dataclass(frozen=True, kw_only=True)
class DeleteConcept(Command):
    """Soft-deletes a concept; it may be purged after `kept_us` microseconds."""

    name: ConceptName
    etag: str
    kept_us: int


@dataclass(frozen=True, kw_only=True)
class UndeleteConcept(Command):
    name: ConceptName
    etag: str


@dataclass(frozen=True, kw_only=True)
class PurgeConcept(Command):
    name: ConceptName
    force: bool


@dataclass(frozen=True, kw_only=True)
class PublishVersion(Command):
    """Publishes the vectors in the blob `blob` as the next version of `concept`; a missing concept is created from
    `create`.

    `summary` is the Version as its publisher described it, as protobuf's JSON, without recipe and loss curve. If it has
    these, the blob `record` holds the whole description; else `record` is empty. `job` is the training job's name, or
    empty.
    """

    concept: ConceptName
    create: ConceptFields | None
    summary: Mapping[str, Any]
    job: str
    blob: str
    blob_digest: str
    size: int
    tensors_digest: str
    record: str


@dataclass(frozen=True, kw_only=True)
class CondemnBlobs(Command):
    """Condemns `blobs`, names of blobs of `tenant` that no version needs: no commit may name them any more."""

    tenant: str
    blobs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class YankVersion(Command):
    name: VersionName
    reason: str
    etag: str


@dataclass(frozen=True, kw_only=True)
class UnyankVersion(Command):
    name: VersionName
    etag: str


@dataclass(frozen=True, kw_only=True)
class CreateEvaluation(Command):
    """`evaluation` is the Evaluation as protobuf's JSON."""

    name: EvaluationName
    evaluation: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SetAlias(Command):
    name: AliasName
    version: VersionName
    reason: str
    etag: str
    create_only: bool


@dataclass(frozen=True, kw_only=True)
class DeleteAlias(Command):
    name: AliasName
    reason: str
    etag: str


@dataclass(frozen=True, kw_only=True)
class RollbackAlias(Command):
    name: AliasName
    reason: str
    etag: str

"""What can be asked of the catalogue, checked as far as it can be without knowing what is there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pseudoword.names import AliasName, ConceptName, EvaluationName, TenantName, VersionName


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """Upper bounds of one tenant; 0 means the server's default. Bytes are those of stored embeddings."""

    concepts: int = 0
    versions_per_concept: int = 0
    embedding_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Command:
    """`peer` is the address that the request came from; it is kept for the audit."""

    peer: str


@dataclass(frozen=True, kw_only=True)
class CreateTenant(Command):
    name: TenantName
    display_name: str
    quotas: Quotas


@dataclass(frozen=True, kw_only=True)
class UpdateTenant(Command):
    """`fields` holds `display_name` and members of Quotas, by name, that change."""

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
    """`fields` holds those members of ConceptFields, by name, that change."""

    name: ConceptName
    fields: Mapping[str, Any]
    etag: str


@dataclass(frozen=True, kw_only=True)
class DeleteConcept(Command):
    """Soft-deletes; it may be purged after `kept_us` microseconds."""

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
    """Vectors in the blob `blob` become the next version of `concept`, which is made from `create` where it is missing.

    `summary` is the Version as its publisher described it, as protobuf's JSON, without recipe and loss curve; where
    there are such, the blob `record` (else empty) holds all. `job` is the training job's name, or empty.
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
    """Nothing refers to `blobs`, names of objects of `tenant`, and nothing may from now on."""

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

"""The rpcs of versions: publish, import, read, yank."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pseudoword.names import ConceptName, VersionName
from pseudoword.registry.v1 import registry_pb2, resources_pb2

from registry import files
from registry.api import conversions, validation
from registry.api.base import Context, Rpcs, admitted, check_write
from registry.catalogue import concepts, versions
from registry.catalogue.commands import ConceptFields, PublishVersion, UnyankVersion, YankVersion
from registry.catalogue.versioned_rows import NOW
from registry.catalogue_store import CatalogueStore
from rpc.commits import UNCOMMITTED
from rpc.errors import InvalidArgument, Unavailable
from rpc.filters import Field, Kind, filtered
from rpc.identity import Role
from rpc.validate import Violations
from storage.errors import Damaged, ObjectMissing, TensorsInvalid
from storage.ledger.entry import Revision
from storage.objects.blobs import Blob
from storage.tensors import Vectors, is_pickle, read_tensors, tensors_digest, write_tensors

_FIELDS = {
    "state": Field(kind=Kind.ENUM, sql="state", values=tuple(resources_pb2.Version.State.keys())),
    "creator": Field(kind=Kind.TEXT, sql="creator"),
    "create_time": Field(kind=Kind.TIME, sql="create_us"),
    "number": Field(kind=Kind.NUMBER, sql="number"),
    "base_model.family": Field(kind=Kind.TEXT, sql="family"),
    "provenance.origin": Field(kind=Kind.ENUM, sql="origin", values=tuple(resources_pb2.Provenance.Origin.keys())),
    "labels": Field(kind=Kind.LABELS, sql="labels"),
}


# Attempts of a publication. If its blobs were condemned between upload and commit, they are uploaded again.
_UPLOADS = 3


class _Condemned(Exception):
    """The uploaded blobs were condemned before the commit."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A version to publish. `described`: its description by the publisher, with the base model's encoders completed."""

    parent: ConceptName
    create: ConceptFields | None
    described: resources_pb2.Version
    tensors: dict[str, Vectors]


class VersionRpcs(Rpcs):
    """The rpcs of versions."""

    async def PublishVersion(
        self, request: registry_pb2.PublishVersionRequest, context: Context
    ) -> resources_pb2.Version:
        found = Violations()
        parent = admitted(found, ConceptName, request.parent, "parent", Role.WRITER)
        create = validation.concept(found, "concept", request.concept) if request.create_concept else None
        described = _described(request.version)
        validation.version(found, "version", described)
        validation.base_model(found, "version.base_model", described.base_model)
        if not described.base_model.encoders:
            found.add("version.base_model.encoders", "is required: one for each tensor of the file")
        job = described.provenance.job
        if job and job.split("/")[1:2] != [parent.tenant]:
            found.add("version.provenance.job", f"must be a job of tenants/{parent.tenant}")
        check_write(found, request)
        tensors = await _read(request.embedding, "embedding")
        files.fill_encoders(found, "version.base_model", described.base_model, tensors)
        found.raise_if_any()
        if not described.provenance.origin:
            learned, published = resources_pb2.Provenance.ORIGIN_LEARNED, resources_pb2.Provenance.ORIGIN_PUBLISHED
            described.provenance.origin = learned if job else published
        publication = Publication(parent=parent, create=create, described=described, tensors=tensors)
        return await self._publish(publication, request, context)

    async def ImportVersion(
        self, request: registry_pb2.ImportVersionRequest, context: Context
    ) -> resources_pb2.Version:
        found = Violations()
        parent = admitted(found, ConceptName, request.parent, "parent", Role.WRITER)
        create = validation.concept(found, "concept", request.concept) if request.create_concept else None
        described = resources_pb2.Version(
            base_model=request.base_model, description=request.description, labels=request.labels
        )
        found.characters("description", request.description, 2_000)
        found.labels("labels", request.labels)
        validation.base_model(found, "base_model", request.base_model)
        files.check_format(found, request.format)
        check_write(found, request)
        layout, tensors = files.recognise(*await self._read_import(request))
        files.fill_encoders(found, "base_model", described.base_model, tensors)
        found.raise_if_any()
        described.provenance.origin = resources_pb2.Provenance.ORIGIN_IMPORTED
        described.provenance.imported_format = files.NAMES[layout]
        publication = Publication(parent=parent, create=create, described=described, tensors=tensors)
        return await self._publish(publication, request, context)

    async def _read_import(self, request: registry_pb2.ImportVersionRequest) -> tuple[dict[str, Vectors], files.Format]:
        """The tensors of the file, and its expected layout."""
        if request.format != files.A1111 and not is_pickle(request.data):
            return await _read(request.data, "data"), request.format
        with _refusal_of("data"):
            tensors = await self._pickles.read(request.data)
        # Without A1111's names it is the caller's format, else diffusers' learned_embeds.bin, named by its token.
        return tensors, files.A1111 if files.is_a1111(tensors) else request.format or files.DIFFUSERS

    async def _publish(self, publication: Publication, request: Any, context: Context) -> resources_pb2.Version:
        """Write the blobs (vectors and record) first, then the entry that names them."""
        described = publication.described
        self._signatures.check(described.signatures, tensors_digest(publication.tensors))
        data = write_tensors(publication.tensors)
        record = described.SerializeToString(deterministic=True) if _has_record(described) else b""
        for _ in range(_UPLOADS):
            with suppress(_Condemned):
                return await self._commit(publication, data, record, request, context)
        raise Unavailable(
            f"the upload was condemned before its commit {_UPLOADS} times: run `pseudoword gc` with a longer --grace"
        )

    async def _commit(
        self, publication: Publication, data: bytes, record: bytes, request: Any, context: Context
    ) -> resources_pb2.Version:
        tenant, described = publication.parent.tenant, publication.described
        blobs = await self._upload(tenant, [data, record] if record else [data], request.validate_only)
        command = PublishVersion(
            peer=context.peer(),
            concept=publication.parent,
            create=publication.create,
            summary=conversions.to_json(_summary(described)),
            job=_publication_of(described.provenance),
            blob=blobs[0].name,
            blob_digest=blobs[0].sha256,
            size=blobs[0].size,
            tensors_digest=tensors_digest(publication.tensors),
            record=blobs[1].name if record else "",
        )
        try:
            result = await self._catalogue.commit(tenant, command, request, context)
        except UNCOMMITTED as error:
            await self._drop(blobs, request.validate_only)
            if getattr(error, "reason", "") == "BLOB_CONDEMNED":
                raise _Condemned from error
            raise
        if result.value["blob"] == blobs[0].name:
            return with_record(conversions.version(result.value, result.revision), described)
        # A repeated request, or a job that has already been published: the answer is the earlier version.
        await self._drop(blobs, request.validate_only)
        try:
            return await whole(self._catalogue, result.value, result.revision)
        except ObjectMissing:
            # The version was purged in the meantime, and its record deleted.
            return conversions.version(result.value, result.revision)

    async def _upload(self, tenant: str, contents: Sequence[bytes], validate_only: bool) -> list[Blob]:
        if validate_only:
            return [Blob.of(tenant, content) for content in contents]
        return list(await asyncio.gather(*(self._catalogue.put_blob(tenant, content) for content in contents)))

    async def _drop(self, blobs: Sequence[Blob], validate_only: bool) -> None:
        if not validate_only:
            await asyncio.gather(*(self._catalogue.drop_blob(blob) for blob in blobs))

    async def GetVersion(self, request: registry_pb2.GetVersionRequest, context: Context) -> resources_pb2.Version:
        found = Violations()
        name = admitted(found, VersionName, request.name, "name", Role.READER)
        age = validation.staleness(found, request)
        found.raise_if_any()
        row, revision = await self._catalogue.read(name.tenant, lambda db: versions.get(db, name), age)
        return await whole(self._catalogue, row, revision)

    async def ListVersions(
        self, request: registry_pb2.ListVersionsRequest, context: Context
    ) -> registry_pb2.ListVersionsResponse:
        found = Violations()
        parent = admitted(found, ConceptName, request.parent, "parent", Role.READER)
        age = validation.staleness(found, request)
        where = filtered(found, request, _FIELDS)
        found.raise_if_any()
        page = await self._catalogue.page(
            parent.tenant,
            request,
            lambda db, at, before, limit: versions.page(db, parent, where, at, before, limit),
            exists=lambda db: concepts.get(db, parent),
            message=conversions.version,
            key=lambda row: row["number"],
            first=NOW,
            max_staleness=age,
        )
        return registry_pb2.ListVersionsResponse(
            versions=page.items, next_page_token=page.token, revision=str(page.revision)
        )

    async def YankVersion(self, request: registry_pb2.YankVersionRequest, context: Context) -> resources_pb2.Version:
        found = Violations()
        name = admitted(found, VersionName, request.name, "name", Role.WRITER)
        found.characters("reason", request.reason, validation.MAX_REASON)
        check_write(found, request)
        command = YankVersion(peer=context.peer(), name=name, reason=request.reason, etag=request.etag)
        result = await self._catalogue.commit(name.tenant, command, request, context)
        return await whole(self._catalogue, result.value, result.revision)

    async def UnyankVersion(
        self, request: registry_pb2.UnyankVersionRequest, context: Context
    ) -> resources_pb2.Version:
        found = Violations()
        name = admitted(found, VersionName, request.name, "name", Role.WRITER)
        check_write(found, request)
        command = UnyankVersion(peer=context.peer(), name=name, etag=request.etag)
        result = await self._catalogue.commit(name.tenant, command, request, context)
        return await whole(self._catalogue, result.value, result.revision)


async def whole(catalogue: CatalogueStore, row: conversions.Row, revision: Revision) -> resources_pb2.Version:
    """A Version with its loss curve and recipe, which are read from its record. Raises Damaged."""
    version = conversions.version(row, revision)
    if not row["record"]:
        return version
    record = resources_pb2.Version()
    try:
        record.ParseFromString(await catalogue.get_blob(row["record"]))
    except ValueError as error:  # DecodeError is one
        raise Damaged(row["record"], "it is not the record of a version") from error
    return with_record(version, record)


def with_record(version: resources_pb2.Version, record: resources_pb2.Version) -> resources_pb2.Version:
    """`version` with the loss curve and recipe of `record`."""
    version.provenance.recipe_json = record.provenance.recipe_json
    version.provenance.loss_curve.extend(record.provenance.loss_curve)
    return version


def _described(given: resources_pb2.Version) -> resources_pb2.Version:
    """The fields of a Version that a publisher may set; the registry sets the others."""
    return resources_pb2.Version(
        base_model=given.base_model,
        provenance=given.provenance,
        description=given.description,
        labels=given.labels,
        signatures=given.signatures,
    )


def _publication_of(provenance: resources_pb2.Provenance) -> str:
    """The key under which a publication is made at most once: the job, or the job's first version (`at_once`)."""
    return f"{provenance.job}#at-once" if provenance.job and provenance.at_once else provenance.job


def _has_record(described: resources_pb2.Version) -> bool:
    return bool(described.provenance.recipe_json or described.provenance.loss_curve)


def _summary(described: resources_pb2.Version) -> resources_pb2.Version:
    summary = resources_pb2.Version()
    summary.CopyFrom(described)
    summary.provenance.ClearField("recipe_json")
    summary.provenance.ClearField("loss_curve")
    return summary


async def _read(data: bytes, field: str) -> dict[str, Vectors]:
    with _refusal_of(field):
        return await asyncio.to_thread(read_tensors, data)


@contextmanager
def _refusal_of(field: str) -> Iterator[None]:
    """Turns TensorsInvalid into InvalidArgument for this field of the request."""
    try:
        yield
    except TensorsInvalid as error:
        message = f"the file cannot be used: {error.message}"
        raise InvalidArgument(message, reason=error.reason, violations=[(field, error.message)]) from None

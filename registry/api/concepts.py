"""The rpcs of concepts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from pseudoword.names import ConceptName, TenantName
from pseudoword.registry.v1 import registry_pb2, resources_pb2

from registry.api import conversions, validation
from registry.api.base import Context, Rpcs, admitted, check_write, child
from registry.catalogue import concepts
from registry.catalogue.commands import (
    CreateConcept,
    DeleteConcept,
    PurgeConcept,
    UndeleteConcept,
    UpdateConcept,
)
from rpc.filters import Field, Kind, Term, parsed, required, to_sql
from rpc.identity import Role
from rpc.validate import Violations

_CHANGEABLE = ("display_name", "description", "labels", "readers")
_FIELDS = {
    "kind": Field(kind=Kind.ENUM, sql="kind", values=tuple(resources_pb2.ConceptKind.keys())),
    "state": Field(kind=Kind.ENUM, sql="state", values=tuple(resources_pb2.Concept.State.keys())),
    "creator": Field(kind=Kind.TEXT, sql="creator"),
    "create_time": Field(kind=Kind.TIME, sql="create_us"),
    "update_time": Field(kind=Kind.TIME, sql="update_us"),
    "latest_version": Field(kind=Kind.NUMBER, sql="latest"),
    "labels": Field(kind=Kind.LABELS, sql="labels"),
    "display_name": Field(kind=Kind.TEXT, sql="display_name"),
}


@dataclass(frozen=True, kw_only=True)
class _Lead:
    """A restriction that a list can look up instead of a scan of all concepts: a label, or a column with an index."""

    label: tuple[str, str] | None = None
    index: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


def _lead(term: Term | None) -> _Lead:
    wanted = required(term)
    for one in wanted:
        if one.key:
            return _Lead(label=(one.key, str(one.value)))
    for column in concepts.INDEXES:
        for one in wanted:
            if one.field == column:
                return _Lead(index=column, parameters={"indexed": one.value})
    return _Lead()


class ConceptRpcs(Rpcs):
    """The rpcs of concepts."""

    async def CreateConcept(
        self, request: registry_pb2.CreateConceptRequest, context: Context
    ) -> resources_pb2.Concept:
        found = Violations()
        parent = admitted(found, TenantName, request.parent, "parent", Role.WRITER)
        name = child(found, ConceptName, str(parent), "concepts", request.concept_id, "concept_id")
        fields = validation.concept(found, "concept", request.concept)
        check_write(found, request)
        command = CreateConcept(peer=context.peer(), name=name, fields=fields)
        result = await self._catalogue.commit(name.tenant, command, request, context)
        return conversions.concept(result.value, result.revision)

    async def GetConcept(self, request: registry_pb2.GetConceptRequest, context: Context) -> resources_pb2.Concept:
        found = Violations()
        name = admitted(found, ConceptName, request.name, "name", Role.READER)
        age = validation.staleness(found, request)
        found.raise_if_any()
        row, revision = await self._catalogue.read(name.tenant, lambda db: concepts.get(db, name), age)
        return conversions.concept(row, revision)

    async def ListConcepts(
        self, request: registry_pb2.ListConceptsRequest, context: Context
    ) -> registry_pb2.ListConceptsResponse:
        found = Violations()
        parent = admitted(found, TenantName, request.parent, "parent", Role.READER)
        age = validation.staleness(found, request)
        term = parsed(found, request, _FIELDS)
        found.raise_if_any()
        condition, parameters = to_sql(term, _FIELDS)
        if not request.show_deleted:
            condition = f"{condition} AND state = '{concepts.ACTIVE}'"
        lead = _lead(term)
        where = condition, {**parameters, **lead.parameters}
        page = await self._catalogue.page(
            parent.tenant,
            request,
            lambda db, at, after, limit: concepts.page(
                db, parent.tenant, where, at, after, limit, label=lead.label, index=lead.index
            ),
            message=conversions.concept,
            key=lambda row: row["concept"],
            first="",
            max_staleness=age,
        )
        return registry_pb2.ListConceptsResponse(
            concepts=page.items, next_page_token=page.token, revision=str(page.revision)
        )

    async def UpdateConcept(
        self, request: registry_pb2.UpdateConceptRequest, context: Context
    ) -> resources_pb2.Concept:
        found = Violations()
        name = admitted(found, ConceptName, request.concept.name, "concept.name", Role.WRITER)
        fields = validation.concept(found, "concept", request.concept)
        is_set = {field: bool(getattr(fields, field)) for field in _CHANGEABLE}
        paths = validation.masked(found, request.update_mask, request.HasField("update_mask"), _CHANGEABLE, is_set)
        check_write(found, request)
        changed = {path: getattr(fields, path) for path in paths}
        command = UpdateConcept(peer=context.peer(), name=name, fields=changed, etag=request.concept.etag)
        result = await self._catalogue.commit(name.tenant, command, request, context)
        return conversions.concept(result.value, result.revision)

    async def DeleteConcept(
        self, request: registry_pb2.DeleteConceptRequest, context: Context
    ) -> resources_pb2.Concept:
        found = Violations()
        name = admitted(found, ConceptName, request.name, "name", Role.WRITER)
        check_write(found, request)
        kept_us = self._keep_deleted // timedelta(microseconds=1)
        command = DeleteConcept(peer=context.peer(), name=name, etag=request.etag, kept_us=kept_us)
        result = await self._catalogue.commit(name.tenant, command, request, context)
        return conversions.concept(result.value, result.revision)

    async def UndeleteConcept(
        self, request: registry_pb2.UndeleteConceptRequest, context: Context
    ) -> resources_pb2.Concept:
        found = Violations()
        name = admitted(found, ConceptName, request.name, "name", Role.WRITER)
        check_write(found, request)
        command = UndeleteConcept(peer=context.peer(), name=name, etag=request.etag)
        result = await self._catalogue.commit(name.tenant, command, request, context)
        return conversions.concept(result.value, result.revision)

    async def PurgeConcept(
        self, request: registry_pb2.PurgeConceptRequest, context: Context
    ) -> registry_pb2.PurgeConceptResponse:
        found = Violations()
        name = admitted(found, ConceptName, request.name, "name", Role.ADMIN)
        check_write(found, request)
        command = PurgeConcept(peer=context.peer(), name=name, force=request.force)
        result = await self._catalogue.commit(name.tenant, command, request, context)
        return registry_pb2.PurgeConceptResponse(revision=str(result.revision))

"""The rpcs of aliases and their history."""

import sqlite3

from pseudoword.names import LATEST, AliasName, ConceptName, VersionName
from pseudoword.registry.v1 import registry_pb2, resources_pb2

from registry.api import conversions, validation
from registry.api.base import Context, Rpcs, admitted, check_write
from registry.catalogue import alias_table, concepts
from registry.catalogue.commands import DeleteAlias, RollbackAlias, SetAlias
from registry.catalogue.versioned_rows import NOW
from rpc.identity import Role
from rpc.validate import Violations


class AliasRpcs(Rpcs):
    """The rpcs of aliases."""

    async def SetAlias(self, request: registry_pb2.SetAliasRequest, context: Context) -> resources_pb2.Alias:
        found = Violations()
        name = admitted(found, AliasName, request.alias.name, "alias.name", Role.WRITER)
        _refuse_latest(found, name, "alias.name")
        version = found.name(VersionName, request.alias.version, "alias.version")
        if version.parent != name.parent:
            found.add("alias.version", f"must be a version of {name.parent}")
        found.characters("reason", request.reason, validation.MAX_REASON)
        check_write(found, request)
        command = SetAlias(
            peer=context.peer(),
            name=name,
            version=version,
            reason=request.reason,
            etag=request.alias.etag,
            create_only=request.create_only,
        )
        result = await self._catalogue.commit(name.tenant, command, request, context)
        return conversions.alias(result.value, result.revision)

    async def GetAlias(self, request: registry_pb2.GetAliasRequest, context: Context) -> resources_pb2.Alias:
        found = Violations()
        name = admitted(found, AliasName, request.name, "name", Role.READER)
        age = validation.staleness(found, request)
        then_us = validation.time_us(found, "at_time", request.at_time) if request.HasField("at_time") else None
        found.raise_if_any()

        def work(db: sqlite3.Connection) -> conversions.Row:
            return alias_table.get(db, name) if then_us is None else alias_table.get_at(db, name, then_us)

        row, revision = await self._catalogue.read(name.tenant, work, age)
        return conversions.alias(row, revision)

    async def ListAliases(
        self, request: registry_pb2.ListAliasesRequest, context: Context
    ) -> registry_pb2.ListAliasesResponse:
        found = Violations()
        parent = admitted(found, ConceptName, request.parent, "parent", Role.READER)
        page = await self._catalogue.page(
            parent.tenant,
            request,
            lambda db, at, after, limit: alias_table.page(db, parent, at, after, limit),
            exists=lambda db: concepts.get(db, parent),
            message=conversions.alias,
            key=lambda row: row["alias"],
            first="",
        )
        return registry_pb2.ListAliasesResponse(
            aliases=page.items, next_page_token=page.token, revision=str(page.revision)
        )

    async def DeleteAlias(
        self, request: registry_pb2.DeleteAliasRequest, context: Context
    ) -> registry_pb2.DeleteAliasResponse:
        found = Violations()
        name = admitted(found, AliasName, request.name, "name", Role.WRITER)
        _refuse_latest(found, name, "name")
        found.characters("reason", request.reason, validation.MAX_REASON)
        check_write(found, request)
        command = DeleteAlias(peer=context.peer(), name=name, reason=request.reason, etag=request.etag)
        result = await self._catalogue.commit(name.tenant, command, request, context)
        return registry_pb2.DeleteAliasResponse(revision=str(result.revision))

    async def RollbackAlias(self, request: registry_pb2.RollbackAliasRequest, context: Context) -> resources_pb2.Alias:
        found = Violations()
        name = admitted(found, AliasName, request.name, "name", Role.WRITER)
        _refuse_latest(found, name, "name")
        found.characters("reason", request.reason, validation.MAX_REASON)
        check_write(found, request)
        command = RollbackAlias(peer=context.peer(), name=name, reason=request.reason, etag=request.etag)
        result = await self._catalogue.commit(name.tenant, command, request, context)
        return conversions.alias(result.value, result.revision)

    async def ListAliasChanges(
        self, request: registry_pb2.ListAliasChangesRequest, context: Context
    ) -> registry_pb2.ListAliasChangesResponse:
        found = Violations()
        parent = admitted(found, AliasName, request.parent, "parent", Role.READER)
        page = await self._catalogue.page(
            parent.tenant,
            request,
            lambda db, at, before, limit: alias_table.history(db, parent, at, before, limit),
            exists=lambda db: concepts.get(db, parent.parent),
            message=lambda row, revision: conversions.alias_change(row),
            key=lambda row: row["since"],
            first=NOW,
        )
        return registry_pb2.ListAliasChangesResponse(
            changes=page.items, next_page_token=page.token, revision=str(page.revision)
        )


def _refuse_latest(found: Violations, name: AliasName, field: str) -> None:
    if name.alias == LATEST:
        found.add(field, f"the alias {LATEST} is computed and cannot be set, moved or deleted; use another alias")

"""The rpcs of tenants."""

import asyncio
import sqlite3
import time
from typing import Any

from pseudoword.names import TenantName
from pseudoword.registry.v1 import registry_pb2, resources_pb2

from registry.api import conversions, validation
from registry.api.base import Context, Rpcs, admitted, check_write, child, tenants_of
from registry.catalogue import tenants
from registry.catalogue.commands import CreateTenant, Quotas, UpdateTenant
from rpc.identity import Role, current_principal
from rpc.pages import Cursor, page_size, request_digest
from rpc.validate import Violations

_QUOTAS = ("concepts", "versions_per_concept", "embedding_bytes")


class TenantRpcs(Rpcs):
    """The rpcs of tenants."""

    async def CreateTenant(self, request: registry_pb2.CreateTenantRequest, context: Context) -> resources_pb2.Tenant:
        found = Violations()
        name = child(found, TenantName, "", "tenants", request.tenant_id, "tenant_id")
        current_principal().require(name.tenant, Role.ADMIN)
        validation.display_name(found, "tenant.display_name", request.tenant.display_name)
        validation.quotas(found, "tenant.quotas", request.tenant.quotas)
        check_write(found, request)
        command = CreateTenant(
            peer=context.peer(),
            name=name,
            display_name=request.tenant.display_name,
            quotas=Quotas(**{quota: getattr(request.tenant.quotas, quota) for quota in _QUOTAS}),
        )
        result = await self._catalogue.commit(name.tenant, command, request, context)
        return conversions.tenant(result.value, result.revision)

    async def GetTenant(self, request: registry_pb2.GetTenantRequest, context: Context) -> resources_pb2.Tenant:
        found = Violations()
        name = admitted(found, TenantName, request.name, "name", Role.READER)
        age = validation.staleness(found, request)
        found.raise_if_any()
        row, revision = await self._catalogue.read(name.tenant, lambda db: tenants.get(db, name), age)
        return conversions.tenant(row, revision)

    async def ListTenants(
        self, request: registry_pb2.ListTenantsRequest, context: Context
    ) -> registry_pb2.ListTenantsResponse:
        """Tenants are spread over all shards, so there is no common revision: pages continue by name, and each page
        shows the state at its own time."""
        principal = current_principal()
        only = tenants_of(principal)
        if only is None:
            principal.require("-", Role.READER)  # no tenant has this name, so only the role is checked
        found = Violations()
        size = page_size(found, request)
        found.raise_if_any()
        cursor = Cursor.read(request, [str])
        after = "" if cursor is None else str(cursor.key[0])
        readable = None if only is None else frozenset(name for name in only if principal.may(name, Role.READER))

        def work(db: sqlite3.Connection) -> list[dict[str, Any]]:
            return tenants.after(db, after, readable, size + 1)

        ledger = self._catalogue.ledger
        shards = range(ledger.shards) if readable is None else {self._catalogue.shard(name) for name in readable}
        answers = await asyncio.gather(*(ledger.read(shard, work) for shard in shards))
        rows = [(row, revision) for some, revision in answers for row in some]
        rows = sorted(rows, key=lambda item: item[0]["tenant"])[: size + 1]
        token = ""
        if len(rows) > size:
            issued = time.time() if cursor is None else cursor.issued
            key = [rows[size - 1][0]["tenant"]]
            token = Cursor(key=key, revision=None, issued=issued, request=request_digest(request)).token()
        shown = [conversions.tenant(row, revision) for row, revision in rows[:size]]
        return registry_pb2.ListTenantsResponse(tenants=shown, next_page_token=token)

    async def UpdateTenant(self, request: registry_pb2.UpdateTenantRequest, context: Context) -> resources_pb2.Tenant:
        found = Violations()
        tenant = request.tenant
        name = admitted(found, TenantName, tenant.name, "tenant.name", Role.ADMIN)
        validation.display_name(found, "tenant.display_name", tenant.display_name)
        validation.quotas(found, "tenant.quotas", tenant.quotas)
        fields = self._fields(found, request)
        check_write(found, request)
        command = UpdateTenant(peer=context.peer(), name=name, fields=fields, etag=tenant.etag)
        result = await self._catalogue.commit(name.tenant, command, request, context)
        return conversions.tenant(result.value, result.revision)

    def _fields(self, found: Violations, request: registry_pb2.UpdateTenantRequest) -> dict[str, Any]:
        quotas = request.tenant.quotas
        is_set = {"display_name": bool(request.tenant.display_name), "quotas": False}
        is_set |= {f"quotas.{quota}": bool(getattr(quotas, quota)) for quota in _QUOTAS}
        paths = validation.masked(found, request.update_mask, request.HasField("update_mask"), list(is_set), is_set)
        changed = [quota for quota in _QUOTAS if "quotas" in paths or f"quotas.{quota}" in paths]
        fields: dict[str, Any] = {quota: getattr(quotas, quota) for quota in changed}
        if "display_name" in paths:
            fields["display_name"] = request.tenant.display_name
        return fields

"""The rpcs of watches and of the audit trail."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from pseudoword.names import TenantName
from pseudoword.registry.v1 import registry_pb2, resources_pb2

from registry.api import conversions, validation
from registry.api.base import Context, Rpcs, admitted, tenants_of
from registry.api.resume_token import ResumeToken
from registry.catalogue import history
from registry.catalogue.content import HIDDEN
from registry.catalogue.versioned_rows import NOW
from registry.catalogue_store import CatalogueStore
from rpc.errors import PermissionDenied, Unavailable
from rpc.filters import Field, Kind, filtered
from rpc.identity import Principal, Role, current_principal
from rpc.validate import Violations

ALL_TENANTS = "tenants/-"

# The largest age of a watch's view, and the pause between two polls.
_POLL_INTERVAL = timedelta(seconds=0.3)
_MAX_EVENTS_AT_ONCE = 256
_BOOKMARK = timedelta(seconds=10)

_TYPES = tuple(resources_pb2.Event.Type.keys()[1:])
_FIELDS = {
    "type": Field(kind=Kind.ENUM, sql="'TYPE_' || replace(upper(kind), '-', '_')", values=_TYPES),
    "resource": Field(kind=Kind.TEXT, sql="json_extract(effect, '$.name')"),
    "actor": Field(kind=Kind.TEXT, sql="actor"),
    "on_behalf_of": Field(kind=Kind.TEXT, sql="on_behalf_of"),
    "event_time": Field(kind=Kind.TIME, sql="time_us"),
    "request_id": Field(kind=Kind.TEXT, sql="request_id"),
}


class WatchRpcs(Rpcs):
    """WatchEvents and ListAuditRecords."""

    async def WatchEvents(
        self, request: registry_pb2.WatchEventsRequest, context: Context
    ) -> AsyncIterator[registry_pb2.WatchEventsResponse]:
        found = Violations()
        principal = current_principal()
        if request.parent == ALL_TENANTS:
            tenant = None
            shards = _shards(self._catalogue, principal)
        else:
            tenant = admitted(found, TenantName, request.parent, "parent", Role.READER).tenant
            shards = {self._catalogue.shard(tenant)}
        bookmark_s = _bookmark_interval(found, request).total_seconds()
        found.raise_if_any()
        resume = await self._start(request.resume_token, shards)
        # A client that waits for the initial metadata can rely on it: all events of its later actions are sent.
        await context.send_initial_metadata(())
        marked = time.monotonic()
        while True:
            began_s, moved, behind = time.time(), False, False
            # At most _MAX_EVENTS_AT_ONCE events per shard, so that no shard waits for a busy one.
            polls = [
                self._catalogue.ledger.changes(shard, after, limit=_MAX_EVENTS_AT_ONCE, max_staleness=_POLL_INTERVAL)
                for shard, after in sorted(resume.after.items())
            ]
            for events, upto in await asyncio.gather(*polls):
                for event in events:
                    resume = resume.moved(event.revision)
                    if event.kind in HIDDEN:
                        continue
                    owner = event.tenant
                    if owner == tenant or (tenant is None and principal.may(owner, Role.READER)):
                        yield registry_pb2.WatchEventsResponse(event=conversions.event(event), resume_token=str(resume))
                resume = resume.moved(upto)
                moved = moved or bool(events)
                behind = behind or len(events) == _MAX_EVENTS_AT_ONCE
            if not behind and time.monotonic() - marked >= bookmark_s:
                yield _bookmark(began_s - _POLL_INTERVAL.total_seconds(), resume)
                marked = time.monotonic()
            await self._pause(shards, 0.0 if moved else _POLL_INTERVAL.total_seconds())

    async def _start(self, token: str, shards: set[int]) -> ResumeToken:
        """The token to start from: `token`, or the present. Raises InvalidArgument, StoreChanged, RevisionAhead."""
        ledger = self._catalogue.ledger
        if token:
            return ResumeToken.parse(token, ledger.store_id, shards)
        now = await asyncio.gather(*(ledger.read(shard, lambda db: None) for shard in shards))
        return ResumeToken({shard: revision for shard, (_, revision) in zip(shards, now, strict=True)})

    async def _pause(self, shards: set[int], most_s: float) -> None:
        """Wait for a possible change, at most `most_s`. Raises Unavailable when the server stops."""
        if most_s and not self._draining.is_set():
            moved = asyncio.ensure_future(self._catalogue.ledger.wait_for_changes(shards, timedelta(seconds=most_s)))
            draining = asyncio.ensure_future(self._draining.wait())
            try:
                await asyncio.wait({moved, draining}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (moved, draining):
                    task.cancel()
                await asyncio.wait({moved, draining})
        if self._draining.is_set():
            raise Unavailable(
                "the server is stopping: continue the watch on another replica, or later, with the last resume token",
                reason="SERVER_STOPPING",
                retry_after=timedelta(seconds=1),
            )

    async def ListAuditRecords(
        self, request: registry_pb2.ListAuditRecordsRequest, context: Context
    ) -> registry_pb2.ListAuditRecordsResponse:
        found = Violations()
        tenant = admitted(found, TenantName, request.parent, "parent", Role.ADMIN).tenant
        where = filtered(found, request, _FIELDS)
        found.raise_if_any()
        store_id, shard = self._catalogue.ledger.store_id, self._catalogue.shard(tenant)
        page = await self._catalogue.page(
            tenant,
            request,
            lambda db, at, before, limit: history.newest(
                db, tenant, where, min(at + 1, before), limit, store_id, shard
            ),
            message=lambda event, revision: conversions.audit_record(event),
            key=lambda event: history.place(event.revision),
            first=NOW,
        )
        return registry_pb2.ListAuditRecordsResponse(
            records=page.items, next_page_token=page.token, revision=str(page.revision)
        )


def _shards(catalogue: CatalogueStore, principal: Principal) -> set[int]:
    """The shards of all tenants that the caller may read. Raises PermissionDenied when there are none."""
    allowed = tenants_of(principal)
    if allowed is None:
        principal.require("-", Role.READER)  # no tenant has this name, so only the role is checked
        return set(range(catalogue.ledger.shards))
    for tenant in allowed:
        principal.require(tenant, Role.READER)
    if not allowed:
        raise PermissionDenied(
            f"{principal.name} may not use any tenant, so there is none to watch", reason="TENANT_DENIED"
        )
    return {catalogue.shard(tenant) for tenant in allowed}


def _bookmark_interval(found: Violations, request: registry_pb2.WatchEventsRequest) -> timedelta:
    if not request.HasField("bookmark_interval"):
        return _BOOKMARK
    interval = validation.duration(found, "bookmark_interval", request.bookmark_interval)
    found.number("bookmark_interval", interval.total_seconds(), 1, 60)
    return interval


def _bookmark(complete_s: float, resume: ResumeToken) -> registry_pb2.WatchEventsResponse:
    complete = Timestamp()
    complete.FromMicroseconds(round(complete_s * 1_000_000))
    return registry_pb2.WatchEventsResponse(
        bookmark=registry_pb2.Bookmark(complete_time=complete), resume_token=str(resume)
    )

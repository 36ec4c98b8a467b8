"""Watches: every change once, in order, across restarts; bookmarks while there are no changes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1 import resources_pb2 as res

from registry.catalogue.state_machine import SHARDS
from storage.ledger.ledger import shard_of
from tests.registry.conftest import Running, Start
from tests.registry.requests import REX, SHOP, pointing, publish, refused
from tests.rpc.conftest import token_entry

SECOND = Duration(seconds=1)


@asynccontextmanager
async def _watching(stub: Any, parent: str = SHOP, token: str = "", **fields: Any) -> AsyncIterator[Any]:
    """A watch that has started."""
    call = stub.WatchEvents(rpc.WatchEventsRequest(parent=parent, resume_token=token, **fields))
    await call.initial_metadata()
    try:
        yield call
    finally:
        call.cancel()


async def _events(call: Any, count: int) -> list[tuple[str, str]]:
    """The next `count` events, as type and resource."""
    found: list[tuple[str, str]] = []
    while len(found) < count:
        message = await call.read()
        if message.WhichOneof("message") == "event":
            kind = res.Event.Type.Name(message.event.type).removeprefix("TYPE_")
            found.append((kind, message.event.resource))
    return found


async def test_watch_reports_every_kind_of_change_in_order(stub: Any) -> None:
    async with _watching(stub) as call:
        await publish(stub, 2)
        await stub.UpdateConcept(
            rpc.UpdateConceptRequest(
                concept=res.Concept(name=REX, readers=["tenants/zoo"]), update_mask=FieldMask(paths=["readers"])
            )
        )
        await stub.SetAlias(pointing("canary", 1))
        await stub.DeleteAlias(rpc.DeleteAliasRequest(name=f"{REX}/aliases/canary"))
        await stub.YankVersion(rpc.YankVersionRequest(name=f"{REX}/versions/2"))
        await stub.UnyankVersion(rpc.UnyankVersionRequest(name=f"{REX}/versions/2"))
        evaluation = res.Evaluation(evaluator="e", metrics={"m": 1})
        await stub.CreateEvaluation(
            rpc.CreateEvaluationRequest(parent=f"{REX}/versions/1", evaluation_id="e", evaluation=evaluation)
        )
        await stub.DeleteConcept(rpc.DeleteConceptRequest(name=REX))
        await stub.UndeleteConcept(rpc.UndeleteConceptRequest(name=REX))
        await stub.DeleteConcept(rpc.DeleteConceptRequest(name=REX))
        await stub.PurgeConcept(rpc.PurgeConceptRequest(name=REX, force=True))
        # Changes of another tenant are not reported, also in the same shard.
        await stub.CreateTenant(rpc.CreateTenantRequest(tenant_id=_neighbour("shop")))
        await stub.UpdateTenant(rpc.UpdateTenantRequest(tenant=res.Tenant(name=SHOP, display_name="Shop")))

        messages: list[Any] = []
        while len(messages) < 15:
            message = await call.read()
            if message.WhichOneof("message") == "event":
                messages.append(message.event)
    names = [(res.Event.Type.Name(event.type)[5:], event.resource.removeprefix(REX)) for event in messages]
    assert names == [
        ("TENANT_CREATED", SHOP),
        ("CONCEPT_CREATED", ""),
        ("VERSION_PUBLISHED", "/versions/1"),
        ("VERSION_PUBLISHED", "/versions/2"),
        ("CONCEPT_UPDATED", ""),
        ("ALIAS_SET", "/aliases/canary"),
        ("ALIAS_DELETED", "/aliases/canary"),
        ("VERSION_YANKED", "/versions/2"),
        ("VERSION_UNYANKED", "/versions/2"),
        ("EVALUATION_CREATED", "/versions/1/evaluations/e"),
        ("CONCEPT_DELETED", ""),
        ("CONCEPT_UNDELETED", ""),
        ("CONCEPT_DELETED", ""),
        ("CONCEPT_PURGED", ""),
        ("TENANT_UPDATED", SHOP),
    ]
    alias = messages[5]
    assert (alias.version, list(alias.readers), alias.actor) == (f"{REX}/versions/1", ["tenants/zoo"], "anonymous")
    assert (messages[6].version, list(messages[6].readers)) == ("", ["tenants/zoo"])
    assert list(messages[4].readers) == ["tenants/zoo"]
    times = [event.event_time.ToMicroseconds() for event in messages]
    assert times == sorted(times)


async def test_resumed_watch_reports_each_change_once_across_a_restart(start: Start) -> None:
    first = await start()
    stub = await first.call()
    listed = await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP))
    token, seen = listed.revision, []
    # Each watch is cancelled after two events, and the next watch resumes; then another server takes over.
    await publish(stub, 4)
    for _ in range(2):
        async with _watching(stub, token=token) as call:
            for _ in range(2):
                message = await call.read()
                seen.append(message.event.resource)
                token = message.resume_token
    await first.stop()
    stub = await (await start()).call()
    await publish(stub, 4)
    while len(seen) < 10:
        async with _watching(stub, token=token) as call:
            message = await call.read()
            seen.append(message.event.resource)
            token = message.resume_token
    assert seen == [SHOP, REX, *(f"{REX}/versions/{number}" for number in range(1, 9))]


async def test_watch_and_reads_show_changes_of_another_replica(start: Start) -> None:
    one, other = await start(), await start()
    near, far = await one.call(), await other.call()
    async with _watching(near) as call:
        await publish(far, 3)
        assert (await _events(call, 5))[-1] == ("VERSION_PUBLISHED", f"{REX}/versions/3")
    # Reads are strong: each replica shows the newest change of the other replica.
    for number in range(4, 8):
        published = (await publish(near if number % 2 else far))[0]
        reader = far if number % 2 else near
        assert (await reader.GetVersion(rpc.GetVersionRequest(name=published.name))).number == number


async def test_idle_watch_sends_bookmarks_to_resume_from(stub: Any) -> None:
    await publish(stub)
    async with _watching(stub, bookmark_interval=SECOND) as call:
        first = await call.read()
        assert first.WhichOneof("message") == "bookmark"
        await publish(stub)
        message = await call.read()
        assert message.event.resource == f"{REX}/versions/2"
        assert first.bookmark.complete_time.ToMicroseconds() < message.event.event_time.ToMicroseconds()
    # A watch from the token of a bookmark misses no change.
    async with _watching(stub, token=first.resume_token) as call:
        assert await _events(call, 1) == [("VERSION_PUBLISHED", f"{REX}/versions/2")]


async def test_invalid_resume_tokens_are_rejected(stub: Any) -> None:
    await publish(stub)
    revision = (await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP))).revision
    store_id, shard, _, _ = revision.split("-")
    other = next(number for number in range(SHARDS) if str(number) != shard)
    cases = [
        ("x", "INVALID_ARGUMENT", "BAD_REVISION"),
        (f"{'0' * 20}-{shard}-1-0", "OUT_OF_RANGE", "STORE_CHANGED"),
        (f"{store_id}-{shard}-999-0", "OUT_OF_RANGE", "REVISION_AHEAD"),
        (f"{store_id}-{shard}-9999999999999999999-0", "OUT_OF_RANGE", "REVISION_AHEAD"),
        (f"{store_id}-{other}-0-0", "INVALID_ARGUMENT", "RESUME_TOKEN_INVALID"),
    ]
    for token, code, reason in cases:
        with refused(code, reason):
            await stub.WatchEvents(rpc.WatchEventsRequest(parent=SHOP, resume_token=token)).read()
    for interval in (Duration(seconds=61), Duration(nanos=1), Duration(seconds=-5)):
        with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
            await stub.WatchEvents(rpc.WatchEventsRequest(parent=SHOP, bookmark_interval=interval)).read()
        assert "bookmark_interval" in refusal.fields


async def test_watch_of_all_tenants_reports_those_of_the_caller(start: Start, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        token_entry("root", '["*"]', '["admin"]')
        + token_entry("some", '["shop", "zoo"]', '["reader"]')
        + token_entry("none", "[]", '["reader"]')
    )
    running = await start(server={"token_file": tokens})
    root, some, none = [await running.call(f"{name}-token") for name in ("root", "some", "none")]
    async with _watching(root, "tenants/-") as every, _watching(some, "tenants/-") as own:
        for tenant in ("shop", "secret", "zoo"):
            await root.CreateTenant(rpc.CreateTenantRequest(tenant_id=tenant))
        assert len(await _events(every, 3)) == 3
        resources = [resource for _, resource in await _events(own, 2)]
        assert sorted(resources) == [SHOP, "tenants/zoo"]
        await root.UpdateTenant(rpc.UpdateTenantRequest(tenant=res.Tenant(name="tenants/secret", display_name="x")))
        await root.UpdateTenant(rpc.UpdateTenantRequest(tenant=res.Tenant(name="tenants/zoo", display_name="x")))
        assert await _events(own, 1) == [("TENANT_UPDATED", "tenants/zoo")]
    with refused("PERMISSION_DENIED", "TENANT_DENIED"):
        await none.WatchEvents(rpc.WatchEventsRequest(parent="tenants/-")).read()
    with refused("PERMISSION_DENIED", "TENANT_DENIED"):
        await some.WatchEvents(rpc.WatchEventsRequest(parent="tenants/secret")).read()


async def test_stopping_server_ends_its_watches(running: Running) -> None:
    stub = await running.call()
    async with _watching(stub) as call:
        reading = asyncio.ensure_future(call.read())
        stopping = asyncio.ensure_future(running.registry.server.stop(grace_s=5))
        with refused("UNAVAILABLE", "SERVER_STOPPING"):
            await reading
        await stopping


def _neighbour(tenant: str) -> str:
    """A tenant of the same shard."""
    shard = shard_of(tenant, SHARDS)
    return next(f"t{number}" for number in range(10_000) if shard_of(f"t{number}", SHARDS) == shard)

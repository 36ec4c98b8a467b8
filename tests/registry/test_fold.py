"""`pseudoword fold`: the same state without old history."""

import re
from pathlib import Path
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1 import resources_pb2 as res

from standalone.fold import folded
from standalone.gc import collect
from tests.conftest import Place
from tests.registry.commands import garbage, run
from tests.registry.conftest import Start
from tests.registry.requests import REX, SHOP, pointing, publish, publishing, refused
from tests.registry.test_derived import PRODUCTION, history

MARA = f"{SHOP}/concepts/mara"
# Revisions, of which etags are made: store id, shard, entry, index.
_REVISION = re.compile(r"[0-9a-f]{20}-\d+-\d+-\d+")


async def _state(stub: Any) -> str:
    """The responses to all reads of the present state, without revisions."""
    responses = [
        await stub.ListTenants(rpc.ListTenantsRequest()),
        await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP, show_deleted=True)),
        *[await stub.ListVersions(rpc.ListVersionsRequest(parent=concept)) for concept in (REX, MARA)],
        await stub.ListEvaluations(rpc.ListEvaluationsRequest(parent=f"{REX}/versions/1")),
        await stub.ListAliases(rpc.ListAliasesRequest(parent=REX)),
        await stub.ResolveWords(rpc.ResolveWordsRequest(parent=SHOP, words=["rex", "rex@latest", "mara", "rex@2"])),
        *[await stub.GetEmbedding(rpc.GetEmbeddingRequest(name=f"{REX}/versions/{number}")) for number in (1, 2)],
    ]
    return _REVISION.sub("R", "\n".join(map(str, responses)))


async def _more(stub: Any) -> None:
    """History of all kinds that fold removes, after that of `history`."""
    await stub.UndeleteConcept(rpc.UndeleteConceptRequest(name=MARA))
    for number in range(12):
        concept = res.Concept(name=MARA, display_name=f"Mara {number}")
        await stub.UpdateConcept(
            rpc.UpdateConceptRequest(concept=concept, update_mask=FieldMask(paths=["display_name"]))
        )
        await stub.SetAlias(pointing("canary", 1 + number % 2))
        await stub.UpdateTenant(rpc.UpdateTenantRequest(tenant=res.Tenant(name=SHOP, display_name=f"Shop {number}")))
    await stub.UnyankVersion(rpc.UnyankVersionRequest(name=f"{REX}/versions/3"))
    await stub.YankVersion(rpc.YankVersionRequest(name=f"{REX}/versions/3", reason="blurry still"))
    await stub.SetAlias(pointing("gone", 1))
    await stub.DeleteAlias(rpc.DeleteAliasRequest(name=f"{REX}/aliases/gone"))
    await stub.DeleteConcept(rpc.DeleteConceptRequest(name=MARA))


def _second(place: Place, tmp_path: Path, name: str) -> Place:
    address = f"{place.address}-{name}" if place.access else str(tmp_path / name)
    return Place(address=address, access=place.access)


async def test_folded_store_gives_the_same_responses(place: Place, start: Start, tmp_path: Path) -> None:
    running = await start()
    stub = await running.call()
    await history(stub)
    await _more(stub)
    for _ in range(2):
        assert (await run(collect, place, place.address, "--grace", "0")).status == 0
    state = await _state(stub)
    revision = (await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP))).revision
    moves = (await stub.ListAliasChanges(rpc.ListAliasChangesRequest(parent=f"{REX}/aliases/canary"))).changes
    await running.stop()

    other = _second(place, tmp_path, "folded")
    ran = await run(folded, place, place.address, other.address, "--keep", "0", "--moves", "3")
    assert ran.status == 0, ran.errors
    kept, events = re.search(r"(\d+) of (\d+) events", ran.output).groups()  # type: ignore[union-attr]
    assert int(kept) < int(events) - 30
    assert await garbage(other) == []
    stub = await (await start(store={"address": other.address})).call()
    assert await _state(stub) == state
    left = (await stub.ListAliasChanges(rpc.ListAliasChangesRequest(parent=f"{REX}/aliases/canary"))).changes
    assert [change.change_time for change in left] == [change.change_time for change in moves[:3]]
    # The purged concept is removed, its name stays reserved, and the audit records do not show the fold.
    with refused("ALREADY_EXISTS", "CONCEPT_EXISTS", state="PURGED"):
        await stub.CreateConcept(rpc.CreateConceptRequest(parent=SHOP, concept_id="gone"))
    records = (await stub.ListAuditRecords(rpc.ListAuditRecordsRequest(parent=SHOP, page_size=1000))).records
    assert not [record for record in records if record.resource.startswith(f"{SHOP}/concepts/gone")]
    assert {record.actor for record in records} == {"anonymous"}
    with refused("OUT_OF_RANGE", "STORE_CHANGED"):
        await stub.WatchEvents(rpc.WatchEventsRequest(parent=SHOP, resume_token=revision)).read()
    # Version numbers continue, and rollback uses the moves that were kept.
    assert (await publish(stub))[0].number == 4
    back = rpc.RollbackAliasRequest(name=f"{REX}/aliases/canary")
    assert [(await stub.RollbackAlias(back)).version[-1] for _ in range(2)] == ["1", "2"]
    with refused("FAILED_PRECONDITION", "NO_EARLIER_VERSION"):
        await stub.RollbackAlias(back)

    # A second fold changes nothing.
    state = await _state(stub)
    third = _second(place, tmp_path, "again")
    assert (await run(folded, other, other.address, third.address, "--keep", "0")).status == 0
    assert await garbage(third) == []
    stub = await (await start(store={"address": third.address})).call()
    assert await _state(stub) == state
    with refused("ALREADY_EXISTS", "CONCEPT_EXISTS", state="PURGED"):
        await stub.CreateConcept(rpc.CreateConceptRequest(parent=SHOP, concept_id="gone"))


async def test_fold_keeps_recent_history(start: Start, place: Place, tmp_path: Path) -> None:
    running = await start()
    stub = await running.call()
    at_time = await history(stub)
    request = publishing(9.0, request_id="again")
    published = await stub.PublishVersion(request)
    audit = await stub.ListAuditRecords(rpc.ListAuditRecordsRequest(parent=SHOP))
    await running.stop()
    other = _second(place, tmp_path, "folded")
    assert (await run(folded, place, place.address, other.address)).status == 0
    stub = await (await start(store={"address": other.address})).call()
    assert (await stub.PublishVersion(request)).name == published.name
    after = await stub.ListAuditRecords(rpc.ListAuditRecordsRequest(parent=SHOP))
    assert len(after.records) == len(audit.records)
    found = await stub.GetAlias(rpc.GetAliasRequest(name=PRODUCTION, at_time=at_time))
    assert found.version == f"{REX}/versions/1"


async def test_fold_rejects_occupied_targets_and_missing_stores(start: Start, place: Place, tmp_path: Path) -> None:
    await publish(await (await start()).call())
    occupied = await run(folded, place, place.address, place.address)
    assert (occupied.status, "is not empty" in occupied.errors) == (1, True), occupied.errors
    nothing = await run(folded, place, str(tmp_path / "nothing"), str(tmp_path / "new"))
    assert (nothing.status, "there is no folder" in nothing.errors) == (1, True), nothing.errors

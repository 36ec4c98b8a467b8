"""Lists: pages that show one state, filters, page tokens."""

import base64
import json
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1 import resources_pb2 as res

from rpc import pages
from tests.registry.conftest import Running
from tests.registry.requests import REX, SHOP, pointing, publish, publishing, refused, version


async def _concepts(stub: Any, *names: str) -> None:
    for name in names:
        await stub.CreateConcept(rpc.CreateConceptRequest(parent=SHOP, concept_id=name))


async def test_all_pages_show_the_state_of_the_first_page(stub: Any) -> None:
    await _concepts(stub, "a", "b", "c", "d", "e")
    request = rpc.ListConceptsRequest(parent=SHOP, page_size=2)
    first = await stub.ListConcepts(request)
    assert [concept.name[-1] for concept in first.concepts] == ["a", "b"]
    # Changes after the first page show on no page of this list.
    await stub.DeleteConcept(rpc.DeleteConceptRequest(name=f"{SHOP}/concepts/c"))
    change = res.Concept(name=f"{SHOP}/concepts/d", display_name="changed")
    await stub.UpdateConcept(rpc.UpdateConceptRequest(concept=change))
    await _concepts(stub, "ca")
    await publish(stub, parent=f"{SHOP}/concepts/e")
    await stub.SetAlias(pointing("production", 1, concept=f"{SHOP}/concepts/e"))
    await stub.DeleteConcept(rpc.DeleteConceptRequest(name=f"{SHOP}/concepts/b"))
    await stub.PurgeConcept(rpc.PurgeConceptRequest(name=f"{SHOP}/concepts/b", force=True))
    seen = list(first.concepts)
    token = first.next_page_token
    while token:
        request.page_token = token
        page = await stub.ListConcepts(request)
        assert page.revision == first.revision
        seen += page.concepts
        token = page.next_page_token
    assert [concept.name[-1] for concept in seen] == ["a", "b", "c", "d", "e"]
    assert {(c.state, c.display_name, c.latest_version, len(c.aliases)) for c in seen} == {(1, "", 0, 0)}
    assert {concept.revision for concept in seen} == {first.revision}
    now = await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP))
    assert [concept.name.rpartition("/")[2] for concept in now.concepts] == ["a", "ca", "d", "e"]
    assert dict(now.concepts[3].aliases) == {"production": 1}


async def test_pages_of_versions_and_alias_changes_show_the_state_of_the_first_page(stub: Any) -> None:
    await publish(stub, 5)
    for number in (1, 2, 3):
        await stub.SetAlias(pointing("production", number))
    versions = rpc.ListVersionsRequest(parent=REX, page_size=2)
    changes = rpc.ListAliasChangesRequest(parent=f"{REX}/aliases/production", page_size=2)
    first, moves = await stub.ListVersions(versions), await stub.ListAliasChanges(changes)
    await publish(stub)
    await stub.SetAlias(pointing("production", 4))
    await stub.YankVersion(rpc.YankVersionRequest(name=f"{REX}/versions/2"))
    versions.page_token, changes.page_token = first.next_page_token, moves.next_page_token
    second, older = await stub.ListVersions(versions), await stub.ListAliasChanges(changes)
    versions.page_token = second.next_page_token
    third = await stub.ListVersions(versions)
    listed = [*first.versions, *second.versions, *third.versions]
    assert [found.number for found in listed] == [5, 4, 3, 2, 1]
    assert {found.state for found in listed} == {res.Version.STATE_ACTIVE}
    assert [list(found.aliases) for found in listed] == [[], [], ["production"], [], []]
    assert third.next_page_token == ""
    assert [change.version[-1] for change in [*moves.changes, *older.changes]] == ["3", "2", "1"]
    assert (moves.revision, older.next_page_token) == (older.revision, "")


async def test_page_size_has_a_default_and_limits_in_rows_and_bytes(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await _concepts(stub, *(f"c{number:02}" for number in range(60)))
    default = await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP))
    assert len(default.concepts) == 50
    every = await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP, page_size=100_000))
    assert (len(every.concepts), every.next_page_token) == (60, "")
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
        await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP, page_size=-1))
    assert refusal.fields == ["page_size"]
    # A page is never larger than a message may be.
    monkeypatch.setattr(pages, "MAX_PAGE_BYTES", 1000)
    request = rpc.ListConceptsRequest(parent=SHOP, page_size=60)
    names: list[str] = []
    while True:
        page = await stub.ListConcepts(request)
        assert 1 <= len(page.concepts) < 10
        names += [concept.name for concept in page.concepts]
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert names == [concept.name for concept in every.concepts]


async def test_altered_expired_and_foreign_page_tokens_are_rejected(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await _concepts(stub, "a", "b", "c")
    request = rpc.ListConceptsRequest(parent=SHOP, page_size=1)
    token = (await stub.ListConcepts(request)).next_page_token
    fields = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))

    def altered(index: int, value: Any) -> str:
        changed = [*fields[:index], value, *fields[index + 1 :]]
        return base64.urlsafe_b64encode(json.dumps(changed).encode()).decode().rstrip("=")

    wrong = [
        "x",
        "é",
        "eA",
        altered(0, 2),
        altered(1, []),
        altered(1, [1]),
        altered(1, ["\ud800"]),
        altered(2, "1-2"),
        altered(3, "x"),
    ]
    for given in [*wrong, altered(4, "0"), "W" * 50_000]:
        with refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID") as refusal:
            await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP, page_size=1, page_token=given))
        assert refusal.fields == ["page_token"]
    with refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID"):
        await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP, page_token=token, filter="kind=STYLE"))
    store_id, shard = fields[2].split("-")[:2]
    ahead = f"{store_id}-{shard}-{10**18}-0"
    with refused("OUT_OF_RANGE", "REVISION_AHEAD"):
        await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP, page_token=altered(2, ahead)))
    other = f"{'0' * 20}-{shard}-1-0"
    with refused("OUT_OF_RANGE", "STORE_CHANGED"):
        await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP, page_token=altered(2, other)))
    with refused("OUT_OF_RANGE", "PAGE_TOKEN_EXPIRED"):
        await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP, page_token=altered(3, fields[3] - 3601)))
    # Also if rows were removed before their hour was over, for example because the clock was set.
    monkeypatch.setattr("registry.catalogue.versioned_rows.KEPT_US", -1)
    for name in ("c", "b"):
        change = res.Concept(name=f"{SHOP}/concepts/{name}", display_name="changed")
        await stub.UpdateConcept(rpc.UpdateConceptRequest(concept=change))
    with refused("OUT_OF_RANGE", "PAGE_TOKEN_EXPIRED"):
        await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP, page_token=token))


async def test_filter_by_an_index_finds_the_rows_of_the_first_pages_state(stub: Any) -> None:
    """Labels change between the pages of a list; the second condition has no index."""
    request = rpc.ListConceptsRequest(parent=SHOP, filter='labels.team = "a" AND latest_version = 0', page_size=3)

    async def label(number: int, team: str, name: str) -> None:
        concept = res.Concept(name=f"{SHOP}/concepts/w{number:02d}", display_name=name)
        concept.labels.update({"team": team} if team else {})
        mask = FieldMask(paths=["labels", "display_name"])
        await stub.UpdateConcept(rpc.UpdateConceptRequest(concept=concept, update_mask=mask))

    def found(page: Any) -> list[int]:
        return [int(concept.name[-2:]) for concept in page.concepts]

    await _concepts(stub, *(f"w{number:02d}" for number in range(20)))
    for number in range(20):
        await label(number, "ab"[number % 2], f"name {number % 5}")
    first = await stub.ListConcepts(request)
    await label(6, "b", "name 1")
    await label(8, "", "name 1")
    await label(9, "a", "name 4")
    await stub.DeleteConcept(rpc.DeleteConceptRequest(name=f"{SHOP}/concepts/w10"))
    await stub.PurgeConcept(rpc.PurgeConceptRequest(name=f"{SHOP}/concepts/w10", force=True))
    await label(8, "a", "name 1")
    await publish(stub, parent=f"{SHOP}/concepts/w12")
    seen, token = found(first), first.next_page_token
    while token:
        page = await stub.ListConcepts(
            rpc.ListConceptsRequest(parent=SHOP, filter=request.filter, page_size=3, page_token=token)
        )
        seen, token = seen + found(page), page.next_page_token
    assert seen == list(range(0, 20, 2))
    request.page_size = 50
    assert found(await stub.ListConcepts(request)) == [0, 2, 4, 8, 9, 14, 16, 18]
    named = rpc.ListConceptsRequest(
        parent=SHOP, filter='display_name = "name 4" AND (labels.team = "b" OR kind = OBJECT)'
    )
    assert found(await stub.ListConcepts(named)) == [4, 9, 14, 19]
    assert found(await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP, filter='creator = "nobody"'))) == []
    deleted = rpc.ListConceptsRequest(parent=SHOP, filter="state = DELETED", show_deleted=True)
    await stub.DeleteConcept(rpc.DeleteConceptRequest(name=f"{SHOP}/concepts/w11"))
    assert found(await stub.ListConcepts(deleted)) == [11]


async def test_each_list_has_its_filters(running: Running) -> None:
    stub = await running.call()
    await stub.CreateConcept(
        rpc.CreateConceptRequest(
            parent=SHOP,
            concept_id="mara",
            concept=res.Concept(kind=res.CONCEPT_KIND_STYLE, display_name="Mara's hand", labels={"team": "art"}),
        )
    )
    first, second = await publish(stub, 2)
    await stub.PublishVersion(
        publishing(
            version=version(labels={"stage": "test"}, provenance=res.Provenance(origin=res.Provenance.ORIGIN_IMPORTED))
        )
    )
    await stub.YankVersion(rpc.YankVersionRequest(name=second.name, request_id="the-yank"))

    async def concepts(text: str) -> list[str]:
        page = await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP, filter=text))
        return [concept.name.rpartition("/")[2] for concept in page.concepts]

    assert await concepts("kind = STYLE") == ["mara"]
    assert await concepts("kind = CONCEPT_KIND_OBJECT AND latest_version > 1") == ["rex"]
    assert await concepts("labels.team = art OR latest_version = 3") == ["mara", "rex"]
    assert await concepts("labels:team AND display_name:hand") == ["mara"]
    assert await concepts("creator = anonymous AND create_time > 2020-01-01T00:00:00Z") == ["mara", "rex"]
    assert await concepts('update_time < "2020-01-01T00:00:00+01:00"') == []

    async def versions(text: str) -> list[int]:
        page = await stub.ListVersions(rpc.ListVersionsRequest(parent=REX, filter=text))
        return [found.number for found in page.versions]

    assert await versions("state = ACTIVE") == [3, 1]
    assert await versions("state = YANKED OR number >= 3") == [3, 2]
    assert await versions("provenance.origin = IMPORTED") == [3]
    assert await versions("base_model.family = miniature AND NOT labels.stage = test") == [2, 1]
    assert await versions(f'create_time <= "{first.create_time.ToJsonString()}"') == [1]

    async def audit(text: str) -> list[str]:
        page = await stub.ListAuditRecords(rpc.ListAuditRecordsRequest(parent=SHOP, filter=text))
        return [res.Event.Type.Name(record.type) for record in page.records]

    assert await audit("") == [
        "TYPE_VERSION_YANKED",
        *["TYPE_VERSION_PUBLISHED"] * 3,
        "TYPE_CONCEPT_CREATED",
        "TYPE_CONCEPT_CREATED",
        "TYPE_TENANT_CREATED",
    ]
    assert await audit("type = VERSION_YANKED") == await audit("request_id = the-yank") == ["TYPE_VERSION_YANKED"]
    assert len(await audit(f'resource = "{second.name}"')) == 2
    assert len(await audit(f"resource:{REX} AND actor = anonymous AND on_behalf_of = ''")) == 5

    for text in ("nonsense = 1", "kind > STYLE", "latest_version = x", "kind =", "(kind = STYLE", "create_time > 2020"):
        with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
            await concepts(text)
        assert refusal.fields == ["filter"]


async def test_audit_records_are_listed_newest_first(stub: Any) -> None:
    await publish(stub, 3)
    request = rpc.ListAuditRecordsRequest(parent=SHOP, page_size=2)
    page = await stub.ListAuditRecords(request)
    await publish(stub)
    request.page_token = page.next_page_token
    rest = await stub.ListAuditRecords(request)
    request.page_token = rest.next_page_token
    last = await stub.ListAuditRecords(request)
    records = [*page.records, *rest.records, *last.records]
    assert [record.resource for record in records] == [
        f"{REX}/versions/3",
        f"{REX}/versions/2",
        f"{REX}/versions/1",
        REX,
        SHOP,
    ]
    assert (page.revision, last.next_page_token) == (last.revision, "")
    assert all(record.peer.startswith("ipv4:127.0.0.1") for record in records)
    assert json.loads(records[0].change_json)["name"] == f"{REX}/versions/3"

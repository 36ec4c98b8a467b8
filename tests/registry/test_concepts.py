"""Tenants and concepts: created, updated, deleted, undeleted, purged."""

import asyncio
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1 import resources_pb2 as res

from tests.registry.conftest import Start
from tests.registry.requests import REX, SHOP, pointing, publish, publishing, refused, resolve


def _creating(concept_id: str = "rex", **fields: Any) -> rpc.CreateConceptRequest:
    return rpc.CreateConceptRequest(parent=SHOP, concept_id=concept_id, concept=res.Concept(**fields))


async def test_created_concept_and_its_tenant_are_read_back(stub: Any) -> None:
    made = await stub.CreateConcept(
        _creating(display_name="Rex", labels={"team": "dogs"}, readers=["tenants/b", "tenants/a", "tenants/a"])
    )
    assert made.name == REX
    assert made.kind == res.CONCEPT_KIND_OBJECT
    assert made.state == res.Concept.STATE_ACTIVE
    assert list(made.readers) == ["tenants/a", "tenants/b"]
    assert (made.latest_version, made.version_count, made.creator) == (0, 0, "anonymous")
    read = await stub.GetConcept(rpc.GetConceptRequest(name=REX))
    assert read == made
    tenant = await stub.GetTenant(rpc.GetTenantRequest(name=SHOP))
    assert (tenant.name, tenant.usage.concepts) == (SHOP, 1)
    with refused("ALREADY_EXISTS", "CONCEPT_EXISTS", concept=REX, state="ACTIVE"):
        await stub.CreateConcept(_creating())


async def test_all_invalid_fields_are_reported_together(stub: Any) -> None:
    wrong = _creating(
        display_name="x" * 201,
        description="a\x07b",
        labels={"Team": "dogs", "team": "x" * 64},
        readers=["shop"],
    )
    wrong.request_id = "x" * 65
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
        await stub.CreateConcept(wrong)
    assert set(refusal.fields) == {
        "concept.display_name",
        "concept.description",
        "concept.labels['Team']",
        "concept.labels['team']",
        "concept.readers[0]",
        "request_id",
    }
    for concept_id in ("", "Rex", "a/b", "x" * 64, "1a"):
        with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
            await stub.CreateConcept(_creating(concept_id))
        assert refusal.fields == ["concept_id"]
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
        await stub.GetConcept(rpc.GetConceptRequest(name=REX, max_staleness=Duration(seconds=2**62)))
    assert refusal.fields == ["max_staleness"]
    with refused("NOT_FOUND", "CONCEPT_NOT_FOUND", concept=REX):
        await stub.GetConcept(rpc.GetConceptRequest(name=REX))


async def test_validate_only_creates_no_concept(stub: Any) -> None:
    request = _creating()
    request.validate_only = True
    assert (await stub.CreateConcept(request)).name == REX
    with refused("NOT_FOUND", "CONCEPT_NOT_FOUND"):
        await stub.GetConcept(rpc.GetConceptRequest(name=REX))
    await stub.CreateConcept(_creating())
    with refused("ALREADY_EXISTS", "CONCEPT_EXISTS"):
        await stub.CreateConcept(request)


async def test_repeated_request_id_returns_the_first_response(stub: Any) -> None:
    request = _creating(display_name="one")
    request.request_id = "same"
    first = await stub.CreateConcept(request)
    await stub.UpdateConcept(rpc.UpdateConceptRequest(concept=res.Concept(name=REX, display_name="two")))
    assert await stub.CreateConcept(request) == first
    request.concept.display_name = "three"
    with refused("INVALID_ARGUMENT", "REQUEST_ID_REUSED"):
        await stub.CreateConcept(request)
    with refused("INVALID_ARGUMENT", "REQUEST_ID_REUSED"):
        await stub.DeleteConcept(rpc.DeleteConceptRequest(name=REX, request_id="same"))


async def test_update_mask_selects_the_fields(stub: Any) -> None:
    await stub.CreateConcept(_creating(display_name="Rex", description="dog", labels={"a": "1"}, readers=["tenants/b"]))

    async def update(mask: FieldMask | None, **fields: Any) -> res.Concept:
        concept = res.Concept(name=REX, **fields)
        updated: res.Concept = await stub.UpdateConcept(rpc.UpdateConceptRequest(concept=concept, update_mask=mask))
        return updated

    found = await update(None, display_name="Rexy")
    assert (found.display_name, found.description, dict(found.labels)) == ("Rexy", "dog", {"a": "1"})
    found = await update(FieldMask(paths=["description", "readers"]), display_name="ignored")
    assert (found.display_name, found.description, list(found.readers)) == ("Rexy", "", [])
    found = await update(FieldMask(paths=["*"]), labels={"b": "2"})
    assert (found.display_name, dict(found.labels)) == ("", {"b": "2"})
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
        await update(FieldMask(paths=["kind", "nonsense"]))
    assert refusal.fields == ["update_mask", "update_mask"]


async def test_concurrent_updates_with_one_etag_have_one_winner(stub: Any) -> None:
    read = await stub.CreateConcept(_creating())
    # Versions and aliases do not change the etag of the concept.
    await publish(stub)
    await stub.SetAlias(pointing("production", 1))
    changes = [
        rpc.UpdateConceptRequest(concept=res.Concept(name=REX, display_name=f"writer {number}", etag=read.etag))
        for number in range(8)
    ]
    answers = await asyncio.gather(*(stub.UpdateConcept(change) for change in changes), return_exceptions=True)
    won = [answer for answer in answers if isinstance(answer, res.Concept)]
    assert len(won) == 1
    now = await stub.GetConcept(rpc.GetConceptRequest(name=REX))
    assert now.display_name == won[0].display_name
    with refused("ABORTED", "ETAG_MISMATCH", resource=REX, etag=now.etag):
        await stub.UpdateConcept(changes[0])
    with refused("ABORTED", "ETAG_MISMATCH"):
        await stub.DeleteConcept(rpc.DeleteConceptRequest(name=REX, etag=read.etag))


async def test_concept_is_deleted_undeleted_and_purged(stub: Any) -> None:
    await publish(stub, 2)
    await stub.SetAlias(pointing("production", 1))
    deleted = await stub.DeleteConcept(rpc.DeleteConceptRequest(name=REX))
    assert deleted.state == res.Concept.STATE_DELETED
    kept = deleted.purge_time.ToDatetime() - deleted.delete_time.ToDatetime()
    assert kept.days == 30
    assert await resolve(stub, "rex", "rex@1") == [("NOT_FOUND", "WORD_DELETED")] * 2
    for change in (
        stub.PublishVersion(publishing()),
        stub.UpdateConcept(rpc.UpdateConceptRequest(concept=res.Concept(name=REX, display_name="x"))),
        stub.SetAlias(pointing("production", 2)),
        stub.DeleteConcept(rpc.DeleteConceptRequest(name=REX)),
    ):
        with refused("FAILED_PRECONDITION", "CONCEPT_DELETED"):
            await change
    with refused("ALREADY_EXISTS", "CONCEPT_EXISTS", state="DELETED"):
        await stub.CreateConcept(_creating())
    listed = await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP))
    assert not listed.concepts
    listed = await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP, show_deleted=True, filter="state=DELETED"))
    assert [concept.name for concept in listed.concepts] == [REX]

    back = await stub.UndeleteConcept(rpc.UndeleteConceptRequest(name=REX, etag=deleted.etag))
    assert (back.state, back.HasField("delete_time"), dict(back.aliases)) == (1, False, {"production": 1})
    assert await resolve(stub, "rex", "rex@latest") == [1, 2]
    with refused("FAILED_PRECONDITION", "CONCEPT_ACTIVE"):
        await stub.UndeleteConcept(rpc.UndeleteConceptRequest(name=REX))
    with refused("FAILED_PRECONDITION", "CONCEPT_ACTIVE"):
        await stub.PurgeConcept(rpc.PurgeConceptRequest(name=REX, force=True))

    await stub.DeleteConcept(rpc.DeleteConceptRequest(name=REX))
    with refused("FAILED_PRECONDITION", "CONCEPT_KEPT"):
        await stub.PurgeConcept(rpc.PurgeConceptRequest(name=REX))
    await stub.PurgeConcept(rpc.PurgeConceptRequest(name=REX, force=True))
    with refused("NOT_FOUND", "CONCEPT_NOT_FOUND"):
        await stub.GetConcept(rpc.GetConceptRequest(name=REX))
    with refused("NOT_FOUND", "VERSION_NOT_FOUND"):
        await stub.GetVersion(rpc.GetVersionRequest(name=f"{REX}/versions/1"))
    # The name stays reserved, so that no version number is used twice.
    for change in (stub.CreateConcept(_creating()), stub.PublishVersion(publishing())):
        with refused("ALREADY_EXISTS", "CONCEPT_EXISTS", state="PURGED"):
            await change
    tenant = await stub.GetTenant(rpc.GetTenantRequest(name=SHOP))
    assert tenant.usage == res.Usage()


async def test_tenants_have_quotas_usage_and_pages(stub: Any) -> None:
    request = rpc.CreateTenantRequest(
        tenant_id="shop", tenant=res.Tenant(display_name="Shop", quotas=res.Quotas(concepts=1, versions_per_concept=2))
    )
    made = await stub.CreateTenant(request)
    with refused("ALREADY_EXISTS", "TENANT_EXISTS"):
        await stub.CreateTenant(request)
    await publish(stub, 2)
    with refused("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", quota="versions_per_concept", limit="2", used="2"):
        await stub.PublishVersion(publishing())
    with refused("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", quota="concepts"):
        await stub.CreateConcept(_creating("mara"))

    # Usage does not change the etag of the tenant.
    change = res.Tenant(name=SHOP, etag=made.etag, quotas=res.Quotas(concepts=2))
    changed = await stub.UpdateTenant(rpc.UpdateTenantRequest(tenant=change))
    assert (changed.display_name, changed.quotas.concepts, changed.quotas.versions_per_concept) == ("Shop", 2, 2)
    assert (changed.usage.concepts, changed.usage.versions) == (1, 2)
    await stub.CreateConcept(_creating("mara"))
    with refused("ABORTED", "ETAG_MISMATCH"):
        await stub.UpdateTenant(rpc.UpdateTenantRequest(tenant=change))
    every = rpc.UpdateTenantRequest(tenant=res.Tenant(name=SHOP), update_mask=FieldMask(paths=["*"]))
    assert not (await stub.UpdateTenant(every)).HasField("quotas")

    for tenant_id in ("a", "z", "m"):
        await stub.CreateTenant(rpc.CreateTenantRequest(tenant_id=tenant_id))
    pages, token = [], ""
    while True:
        page = await stub.ListTenants(rpc.ListTenantsRequest(page_size=3, page_token=token))
        pages.append([tenant.name for tenant in page.tenants])
        token = page.next_page_token
        if not token:
            break
    assert pages == [["tenants/a", "tenants/m", "tenants/shop"], ["tenants/z"]]


async def test_quotas_of_the_server_apply_to_tenants_without_own_quotas(start: Start) -> None:
    stub = await (await start(quotas={"concepts": 1, "embedding_bytes": 150})).call()
    published = (await publish(stub))[0]
    with refused("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", quota="embedding_bytes", used=str(published.size_bytes)):
        await stub.PublishVersion(publishing())
    with refused("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", quota="concepts"):
        await stub.CreateConcept(_creating("mara"))

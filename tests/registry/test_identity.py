"""Permissions of roles and tenants, and delegates."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1 import resources_pb2 as res

from rpc.identity import ON_BEHALF_OF, Principal, Role, to_json
from tests.conftest import ROOT
from tests.registry.conftest import Running, Start
from tests.registry.requests import REX, SHOP, pointing, publishing, refused
from tests.rpc.conftest import token_entry

V1 = f"{REX}/versions/1"
PRODUCTION = f"{REX}/aliases/production"
READER, WRITER, ADMIN = "reader", "writer", "admin"
CALLS: dict[str, tuple[str, Any]] = {
    "CreateTenant": (ADMIN, rpc.CreateTenantRequest(tenant_id="shop")),
    "GetTenant": (READER, rpc.GetTenantRequest(name=SHOP)),
    "UpdateTenant": (ADMIN, rpc.UpdateTenantRequest(tenant=res.Tenant(name=SHOP))),
    "CreateConcept": (WRITER, rpc.CreateConceptRequest(parent=SHOP, concept_id="rex")),
    "GetConcept": (READER, rpc.GetConceptRequest(name=REX)),
    "ListConcepts": (READER, rpc.ListConceptsRequest(parent=SHOP)),
    "UpdateConcept": (WRITER, rpc.UpdateConceptRequest(concept=res.Concept(name=REX))),
    "DeleteConcept": (WRITER, rpc.DeleteConceptRequest(name=REX)),
    "UndeleteConcept": (WRITER, rpc.UndeleteConceptRequest(name=REX)),
    "PurgeConcept": (ADMIN, rpc.PurgeConceptRequest(name=REX)),
    "PublishVersion": (WRITER, publishing(create_concept=False)),
    "ImportVersion": (WRITER, rpc.ImportVersionRequest(parent=REX, data=publishing().embedding)),
    "GetVersion": (READER, rpc.GetVersionRequest(name=V1)),
    "ListVersions": (READER, rpc.ListVersionsRequest(parent=REX)),
    "YankVersion": (WRITER, rpc.YankVersionRequest(name=V1)),
    "UnyankVersion": (WRITER, rpc.UnyankVersionRequest(name=V1)),
    "GetEmbedding": (READER, rpc.GetEmbeddingRequest(name=V1)),
    "CreateEvaluation": (
        WRITER,
        rpc.CreateEvaluationRequest(parent=V1, evaluation=res.Evaluation(evaluator="e", metrics={"m": 1})),
    ),
    "GetEvaluation": (READER, rpc.GetEvaluationRequest(name=f"{V1}/evaluations/e")),
    "ListEvaluations": (READER, rpc.ListEvaluationsRequest(parent=V1)),
    "SetAlias": (WRITER, pointing("production", 1)),
    "GetAlias": (READER, rpc.GetAliasRequest(name=PRODUCTION)),
    "ListAliases": (READER, rpc.ListAliasesRequest(parent=REX)),
    "DeleteAlias": (WRITER, rpc.DeleteAliasRequest(name=PRODUCTION)),
    "RollbackAlias": (WRITER, rpc.RollbackAliasRequest(name=PRODUCTION)),
    "ListAliasChanges": (READER, rpc.ListAliasChangesRequest(parent=PRODUCTION)),
    "ResolveWords": (READER, rpc.ResolveWordsRequest(parent=SHOP, words=["rex"])),
    "ListAuditRecords": (ADMIN, rpc.ListAuditRecordsRequest(parent=SHOP)),
}
BELOW = {READER: "nothing", WRITER: READER, ADMIN: WRITER}


@pytest.fixture
async def guarded(start: Start, tmp_path: Path) -> Running:
    """A registry with a token for each role in `shop`, a caller of another tenant, and a delegate."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        token_entry("nothing", '["shop"]', "[]")
        + token_entry(READER, '["shop"]', '["reader"]')
        + token_entry(WRITER, '["shop"]', '["writer"]')
        + token_entry(ADMIN, '["shop"]', '["admin"]')
        + token_entry("stranger", '["zoo"]', '["admin"]')
        + token_entry("trainer", '["*"]', '["writer", "delegate"]')
    )
    return await start(server={"token_file": tokens})


async def _code(stub: Any, call: str, request: Any) -> str:
    try:
        await getattr(stub, call)(request)
    except Exception as error:
        return str(error.code().name)  # type: ignore[attr-defined]
    return "OK"


def test_this_table_has_every_rpc() -> None:
    methods = {method.name for method in rpc.DESCRIPTOR.services_by_name["RegistryService"].methods}
    assert set(CALLS) == methods - {"ListTenants", "WatchEvents"}  # tested separately


def test_protos_document_the_role_of_each_rpc() -> None:
    text = (ROOT / "protos/pseudoword/registry/v1/registry.proto").read_text()
    service = text[text.index("service RegistryService {") :]
    documented: dict[str, str] = {}
    for comment, name in re.findall(r"((?:  //[^\n]*\n)+)  rpc (\w+)", service):
        documented[name] = re.findall(r"Role (\w+)", comment)[0] if "Role " in comment else ""
    assert {name: documented[name] for name in CALLS} == {name: role for name, (role, _) in CALLS.items()}


async def test_every_rpc_requires_its_role_and_tenant(guarded: Running) -> None:
    stubs = {name: await guarded.call(f"{name}-token") for name in ("nothing", READER, WRITER, ADMIN, "stranger")}
    # Twice: a cached response must not reach a caller without the role.
    for call, (role, request) in [*CALLS.items(), *CALLS.items()]:
        with refused("PERMISSION_DENIED", "ROLE_DENIED", role=role):
            await getattr(stubs[BELOW[role]], call)(request)
        with refused("PERMISSION_DENIED", "TENANT_DENIED", tenant="shop"):
            await getattr(stubs["stranger"], call)(request)
        assert await _code(stubs[role], call, request) != "PERMISSION_DENIED", call
    with refused("PERMISSION_DENIED", "ROLE_DENIED"):
        await stubs["nothing"].WatchEvents(rpc.WatchEventsRequest(parent=SHOP)).read()
    with refused("PERMISSION_DENIED", "TENANT_DENIED", tenant="shop"):
        await stubs["stranger"].WatchEvents(rpc.WatchEventsRequest(parent=SHOP)).read()
    with refused("UNAUTHENTICATED", "TOKEN_MISSING"):
        await (await guarded.call()).GetTenant(rpc.GetTenantRequest(name=SHOP))


async def test_only_tenants_of_the_caller_are_listed(guarded: Running) -> None:
    for name, tenant in ((ADMIN, "shop"), ("stranger", "zoo")):
        stub = await guarded.call(f"{name}-token")
        await stub.CreateTenant(rpc.CreateTenantRequest(tenant_id=tenant))
    for name, seen in (("trainer", [SHOP, "tenants/zoo"]), (READER, [SHOP]), ("nothing", [])):
        listed = await (await guarded.call(f"{name}-token")).ListTenants(rpc.ListTenantsRequest())
        assert [tenant.name for tenant in listed.tenants] == seen


async def test_granted_reader_of_another_tenant_reads_the_embedding(guarded: Running) -> None:
    writer, stranger = await guarded.call("writer-token"), await guarded.call("stranger-token")
    await writer.PublishVersion(publishing(concept=res.Concept(readers=["tenants/zoo"])))
    get = rpc.GetEmbeddingRequest(name=V1, reader="tenants/zoo")
    assert (await stranger.GetEmbedding(get)).data
    # A caller cannot claim the grant of another tenant.
    with refused("PERMISSION_DENIED", "TENANT_DENIED", tenant="zoo"):
        await writer.GetEmbedding(get)
    with refused("PERMISSION_DENIED", "TENANT_DENIED", tenant="shop"):
        await stranger.GetEmbedding(rpc.GetEmbeddingRequest(name=V1, reader=SHOP))


async def test_delegate_and_its_caller_are_both_recorded(guarded: Running) -> None:
    stub = await guarded.call("trainer-token")

    def acting_for(name: str, tenant: str, role: Role) -> list[tuple[str, str]]:
        caller = Principal(name=name, tenants=frozenset({tenant}), roles=frozenset({role}))
        return [(ON_BEHALF_OF, to_json(caller))]

    ann = acting_for("ann", "shop", Role.WRITER)
    version = await stub.PublishVersion(publishing(), metadata=ann)
    assert version.creator == "ann"
    alias = await stub.SetAlias(pointing("production", 1), metadata=ann)
    assert alias.updater == "ann"
    changes = await stub.ListAliasChanges(rpc.ListAliasChangesRequest(parent=PRODUCTION))
    assert [(change.actor, change.on_behalf_of) for change in changes.changes] == [("trainer", "ann")]
    for metadata, reason in (
        (acting_for("bob", "shop", Role.READER), "ROLE_DENIED"),
        (acting_for("bob", "zoo", Role.WRITER), "TENANT_DENIED"),
    ):
        with refused("PERMISSION_DENIED", reason):
            await stub.PublishVersion(publishing(), metadata=metadata)
    with refused("PERMISSION_DENIED", "ROLE_DENIED", role="delegate"):
        await (await guarded.call("writer-token")).PublishVersion(publishing(), metadata=ann)

    admin = await guarded.call("admin-token")
    listed = await admin.ListAuditRecords(rpc.ListAuditRecordsRequest(parent=SHOP, filter="on_behalf_of = ann"))
    assert [record.actor for record in listed.records] == ["trainer"] * 4
    assert all(record.peer.startswith("ipv4:127.0.0.1:") and record.request_id for record in listed.records)
    assert json.loads(listed.records[0].change_json)["version"] == V1

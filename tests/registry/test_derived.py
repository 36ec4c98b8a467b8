"""Responses follow from the log alone: views can be deleted, and lost responses requested again."""

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1 import resources_pb2 as res
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub

from registry.app import Registry
from rpc.settings import SettingsError
from storage.objects.disk import DiskStore
from tests.conftest import Place
from tests.registry.conftest import Start, settings_of
from tests.registry.requests import REX, SHOP, pointing, publish, publishing, refused

PRODUCTION = f"{REX}/aliases/production"


async def everything(stub: Any, at_time: Timestamp) -> list[Any]:
    """The responses to all reads."""
    return [
        await stub.ListTenants(rpc.ListTenantsRequest()),
        await stub.ListConcepts(rpc.ListConceptsRequest(parent=SHOP, show_deleted=True)),
        await stub.ListVersions(rpc.ListVersionsRequest(parent=REX)),
        await stub.ListEvaluations(rpc.ListEvaluationsRequest(parent=f"{REX}/versions/1")),
        await stub.ListAliases(rpc.ListAliasesRequest(parent=REX)),
        await stub.ListAliasChanges(rpc.ListAliasChangesRequest(parent=PRODUCTION)),
        await stub.GetAlias(rpc.GetAliasRequest(name=PRODUCTION, at_time=at_time)),
        await stub.ResolveWords(rpc.ResolveWordsRequest(parent=SHOP, words=["rex", "rex@latest", "mara", "rex@2"])),
        await stub.ListAuditRecords(rpc.ListAuditRecordsRequest(parent=SHOP)),
    ]


async def history(stub: Any) -> Timestamp:
    """Makes changes of all kinds. A time between them."""
    await publish(stub, 3)
    moved: res.Alias = await stub.SetAlias(pointing("production", 1))
    await stub.SetAlias(pointing("production", 2))
    await stub.YankVersion(rpc.YankVersionRequest(name=f"{REX}/versions/3", reason="blurry"))
    await stub.RollbackAlias(rpc.RollbackAliasRequest(name=PRODUCTION))
    evaluation = res.Evaluation(evaluator="e", metrics={"m": 0.1})
    await stub.CreateEvaluation(rpc.CreateEvaluationRequest(parent=f"{REX}/versions/1", evaluation=evaluation))
    for concept in ("mara", "gone"):
        await publish(stub, parent=f"{SHOP}/concepts/{concept}")
        await stub.DeleteConcept(rpc.DeleteConceptRequest(name=f"{SHOP}/concepts/{concept}"))
    await stub.PurgeConcept(rpc.PurgeConceptRequest(name=f"{SHOP}/concepts/gone", force=True))
    return moved.update_time


async def test_deleted_views_are_rebuilt_to_the_same_responses(start: Start, tmp_path: Path) -> None:
    views = tmp_path / "views"
    running = await start(store={"views": views})
    stub = await running.call()
    at_time = await history(stub)
    request = publishing(9.0, request_id="again")
    published = await stub.PublishVersion(request)
    responses = await everything(stub, at_time)
    await running.stop()
    shutil.rmtree(views)
    stub = await (await start(store={"views": views})).call()
    assert await everything(stub, at_time) == responses
    # The log holds the request ids too.
    assert await stub.PublishVersion(request) == published


async def test_view_folder_in_use_is_not_shared(start: Start, tmp_path: Path) -> None:
    views = {"views": tmp_path / "views"}
    await start(store=views)
    with pytest.raises(SettingsError, match="another process uses the view folder"):
        await start(store=views)


class _Gate(DiskStore):
    """A disk store that blocks entries of the log while the gate is closed."""

    open = threading.Event()

    def put_if_absent(self, name: str, data: bytes) -> None:
        if name.startswith("log/"):
            assert self.open.wait(60)
        super().put_if_absent(name, data)


async def test_unknown_outcome_is_reported_and_resolved_by_repeating_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = _Gate(tmp_path / "store")
    gate.open.set()
    monkeypatch.setattr("rpc.open_store.open_store", lambda address, access: gate)
    place = Place(address=str(tmp_path / "store"), access=None)
    async with Registry(settings_of(place)) as registry, grpc.aio.insecure_channel(registry.server.address) as channel:
        stub: Any = RegistryServiceStub(channel)
        await publish(stub)
        gate.open.clear()
        request = publishing(2.0, request_id="unknown")
        # Before the deadline, so that the caller gets the reason.
        with refused("UNAVAILABLE", "OUTCOME_UNKNOWN", request_id="unknown") as refusal:
            await stub.PublishVersion(request, timeout=1.5)
        assert refusal.error.retry_after is not None
        waiting = [asyncio.ensure_future(stub.PublishVersion(request, timeout=30)) for _ in range(3)]
        gate.open.set()
        answers = await asyncio.gather(*waiting)
        assert {answer.number for answer in answers} == {2}
        listed = await stub.ListVersions(rpc.ListVersionsRequest(parent=REX))
        assert [version.number for version in listed.versions] == [2, 1]
        assert (await stub.GetEmbedding(rpc.GetEmbeddingRequest(name=listed.versions[0].name))).data

"""The cost of calls in the databases of the views: it grows with the response, not with the catalogue."""

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1 import resources_pb2 as res
from pseudoword.registry.v1.registry_pb2_grpc import RegistryServiceStub

from registry.app import Registry
from storage.ledger.view import View
from storage.objects.disk import DiskStore
from tests.conftest import Place
from tests.registry.conftest import settings_of
from tests.registry.requests import SHOP, pointing, publishing, version
from tests.registry.seeding import seed, words_of

SMALL, LARGE = 200, 800
# A larger B-tree is a little deeper.
MORE = 1.3


class _InstructionCounter:
    """Counts the instructions that SQLite runs for views between `begin` and `end`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        self._counting = False
        self._known: list[sqlite3.Connection] = []
        connect = View._connect

        def recorded(view: View) -> sqlite3.Connection:
            db = connect(view)
            self._known.append(db)
            if self._counting:
                db.set_progress_handler(self._count, 1)
            return db

        monkeypatch.setattr(View, "_connect", recorded)

    def begin(self) -> None:
        self._counting = True
        for db in self._known:
            with suppress(sqlite3.ProgrammingError):  # it is closed
                db.set_progress_handler(self._count, 1)

    def end(self) -> None:
        self._counting = False
        self._known.clear()

    def _count(self) -> int:
        self.steps += 1
        return 0


async def _costs(stub: Any, machine: _InstructionCounter, size: int) -> Counter[str]:
    """The number of SQLite instructions of one call of each kind."""
    concept = f"{SHOP}/concepts/{words_of(size, 2)[1]}"
    described = version()
    described.base_model.family = "stable-diffusion-1"
    some, one = 'labels.team = "t7"', f'display_name = "word {size - 1}"'
    calls: dict[str, tuple[str, Any]] = {
        "page": ("ListConcepts", rpc.ListConceptsRequest(parent=SHOP, page_size=8)),
        "page by label": ("ListConcepts", rpc.ListConceptsRequest(parent=SHOP, page_size=4, filter=some)),
        "page by rare label": ("ListConcepts", rpc.ListConceptsRequest(parent=SHOP, filter='labels.rare = "yes"')),
        "page by name": ("ListConcepts", rpc.ListConceptsRequest(parent=SHOP, filter=one)),
        "page by creator": (
            "ListConcepts",
            rpc.ListConceptsRequest(parent=SHOP, page_size=8, filter='creator = "seeder"'),
        ),
        "page of versions": ("ListVersions", rpc.ListVersionsRequest(parent=concept)),
        "page of the audit trail": ("ListAuditRecords", rpc.ListAuditRecordsRequest(parent=SHOP, page_size=8)),
        "resolve": ("ResolveWords", rpc.ResolveWordsRequest(parent=SHOP, words=words_of(size, 10))),
        "publish": ("PublishVersion", publishing(parent=concept, version=described)),
        "create": ("CreateConcept", rpc.CreateConceptRequest(parent=SHOP, concept_id="new")),
        "update": (
            "UpdateConcept",
            rpc.UpdateConceptRequest(concept=res.Concept(name=concept, labels={"team": "t7", "color": "red"})),
        ),
        "alias": ("SetAlias", pointing("production", 1, concept=concept)),
        "alias moved": ("SetAlias", pointing("production", 2, concept=concept)),
        "rollback": ("RollbackAlias", rpc.RollbackAliasRequest(name=f"{concept}/aliases/production")),
        "changes": ("ListAliasChanges", rpc.ListAliasChangesRequest(parent=f"{concept}/aliases/production")),
        "delete": ("DeleteConcept", rpc.DeleteConceptRequest(name=concept)),
        "purge": ("PurgeConcept", rpc.PurgeConceptRequest(name=concept, force=True)),
    }
    found: Counter[str] = Counter()
    for what, (method, request) in calls.items():
        before = machine.steps
        answer = await getattr(stub, method)(request)
        found[what] = machine.steps - before
        if what == "page by label":
            assert [int(shown.name[-6:]) % 20 for shown in answer.concepts] == [7] * 4
            following = rpc.ListConceptsRequest()
            following.CopyFrom(request)
            following.page_token = answer.next_page_token
            before = machine.steps
            await stub.ListConcepts(following)
            found["a later page by label"] = machine.steps - before
        elif "rare" in what or "name" in what:
            assert [shown.name for shown in answer.concepts] == [f"{SHOP}/concepts/word-{size - 1:06d}"]
    return found


@pytest.fixture
async def machine(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[_InstructionCounter]:
    yield _InstructionCounter(monkeypatch)


async def test_cost_of_a_call_does_not_grow_with_the_catalogue(machine: _InstructionCounter, tmp_path: Path) -> None:
    costs = {}
    for size in (SMALL, LARGE):
        root = tmp_path / str(size)
        await seed(DiskStore(root / "store"), size, root / "views")
        machine.end()
        settings = settings_of(Place(address=str(root / "store"), access=None), store={"views": root / "views"})
        async with AsyncExitStack() as stack:
            registry = await stack.enter_async_context(Registry(settings))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(registry.server.address))
            stub: Any = RegistryServiceStub(channel)
            # The first call opens the view.
            await stub.GetTenant(rpc.GetTenantRequest(name=SHOP))
            machine.begin()
            costs[size] = await _costs(stub, machine, size)
            machine.end()
    grown = {
        what: (cost, costs[LARGE][what]) for what, cost in costs[SMALL].items() if costs[LARGE][what] > cost * MORE
    }
    assert not grown, grown
    assert min(costs[SMALL].values()) > 0

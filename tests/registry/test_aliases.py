"""Aliases: moves on an etag, history, rollback."""

import asyncio
import sqlite3
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pseudoword.names import AliasName, ConceptName, VersionName
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1 import resources_pb2 as res

from registry.catalogue import alias_table
from registry.catalogue.commands import (
    Command,
    ConceptFields,
    DeleteAlias,
    PublishVersion,
    Quotas,
    RollbackAlias,
    SetAlias,
    UnyankVersion,
    YankVersion,
)
from registry.catalogue.state_machine import CatalogueStateMachine
from registry.catalogue.versioned_rows import NOW
from rpc.errors import FailedPrecondition, NotFound
from storage.ledger.entry import RecordedEvent, Revision
from storage.ledger.state_machine import Answer, CommittedEvent
from tests.registry.requests import REX, pointing, publish, refused, resolve

PRODUCTION = f"{REX}/aliases/production"


async def test_alias_moves_on_its_etag_and_keeps_its_history(stub: Any) -> None:
    await publish(stub, 2)
    first = await stub.SetAlias(pointing("production", 1, create_only=True, reason="launch"))
    assert (first.version, first.updater) == (f"{REX}/versions/1", "anonymous")
    with refused("ALREADY_EXISTS", "ALIAS_EXISTS"):
        await stub.SetAlias(pointing("production", 2, create_only=True))
    second = await stub.SetAlias(pointing("production", 2, etag=first.etag, reason="better"))
    assert await resolve(stub, "rex", "rex@production") == [2, 2]
    # The first and the third move lead to one version and have different etags.
    third = await stub.SetAlias(pointing("production", 1, etag=second.etag))
    assert len({first.etag, second.etag, third.etag}) == 3
    for stale in (first, second):
        with refused("ABORTED", "ETAG_MISMATCH", etag=third.etag):
            await stub.SetAlias(pointing("production", 2, etag=stale.etag))

    assert (await stub.GetAlias(rpc.GetAliasRequest(name=PRODUCTION))).version == f"{REX}/versions/1"
    for moved in (first, second, third):
        then = await stub.GetAlias(rpc.GetAliasRequest(name=PRODUCTION, at_time=moved.update_time))
        assert then.version == moved.version
    before = Timestamp()
    before.FromMicroseconds(first.update_time.ToMicroseconds() - 1)
    with refused("NOT_FOUND", "ALIAS_NOT_FOUND", alias=PRODUCTION):
        await stub.GetAlias(rpc.GetAliasRequest(name=PRODUCTION, at_time=before))
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
        await stub.GetAlias(rpc.GetAliasRequest(name=PRODUCTION, at_time=Timestamp(seconds=2**62)))

    await stub.DeleteAlias(rpc.DeleteAliasRequest(name=PRODUCTION, etag=third.etag, reason="dropped"))
    with refused("NOT_FOUND", "ALIAS_NOT_FOUND"):
        await stub.DeleteAlias(rpc.DeleteAliasRequest(name=PRODUCTION))
    with refused("ABORTED", "ETAG_MISMATCH"):
        await stub.SetAlias(pointing("production", 1, etag=third.etag))
    changes = (await stub.ListAliasChanges(rpc.ListAliasChangesRequest(parent=PRODUCTION))).changes
    numbers = [(change.previous_version[-1:], change.version[-1:], change.reason) for change in changes]
    assert numbers == [("1", "", "dropped"), ("2", "1", ""), ("1", "2", "better"), ("", "1", "launch")]
    assert [change.revision for change in changes[1:]] == [third.etag, second.etag, first.etag]
    assert await resolve(stub, "rex", "rex@production") == [2, ("NOT_FOUND", "ALIAS_NOT_FOUND")]


async def test_latest_is_computed_and_has_a_history(stub: Any) -> None:
    first, second = await publish(stub, 2)
    name = f"{REX}/aliases/latest"
    await stub.YankVersion(rpc.YankVersionRequest(name=second.name))
    assert (await stub.GetAlias(rpc.GetAliasRequest(name=name))).version == first.name
    then = await stub.GetAlias(rpc.GetAliasRequest(name=name, at_time=second.create_time))
    assert then.version == second.name
    for change in (
        stub.SetAlias(pointing("latest", 1)),
        stub.DeleteAlias(rpc.DeleteAliasRequest(name=name)),
        stub.RollbackAlias(rpc.RollbackAliasRequest(name=name)),
    ):
        with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
            await change
    await stub.YankVersion(rpc.YankVersionRequest(name=first.name))
    with refused("NOT_FOUND", "ALIAS_NOT_FOUND"):
        await stub.GetAlias(rpc.GetAliasRequest(name=name))
    assert await resolve(stub, "rex", "rex@latest") == [("NOT_FOUND", "VERSION_NOT_FOUND")] * 2
    assert not (await stub.ListAliases(rpc.ListAliasesRequest(parent=REX))).aliases


async def test_alias_of_another_concepts_or_a_missing_version_is_rejected(stub: Any) -> None:
    await publish(stub)
    mara = REX.replace("rex", "mara")
    await publish(stub, parent=mara)
    wrong = pointing("production", 1)
    wrong.alias.version = f"{mara}/versions/1"
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT") as refusal:
        await stub.SetAlias(wrong)
    assert refusal.fields == ["alias.version"]
    with refused("NOT_FOUND", "VERSION_NOT_FOUND"):
        await stub.SetAlias(pointing("production", 2))
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
        await stub.SetAlias(pointing("2", 1))
    with refused("NOT_FOUND", "CONCEPT_NOT_FOUND"):
        await stub.ListAliases(rpc.ListAliasesRequest(parent=REX.replace("rex", "none")))


async def test_concurrent_moves_with_one_etag_have_one_winner(stub: Any) -> None:
    await publish(stub, 5)
    read = await stub.SetAlias(pointing("production", 1))
    moves = [pointing("production", 2 + number % 4, etag=read.etag) for number in range(12)]
    answers = await asyncio.gather(*(stub.SetAlias(move) for move in moves), return_exceptions=True)
    won = [answer for answer in answers if isinstance(answer, res.Alias)]
    assert len(won) == 1
    changes = (await stub.ListAliasChanges(rpc.ListAliasChangesRequest(parent=PRODUCTION))).changes
    assert [change.version for change in changes] == [won[0].version, read.version]


async def test_repeated_rollback_goes_back_and_skips_yanked_versions(stub: Any) -> None:
    await publish(stub, 4)
    for number in (1, 2, 3, 4):
        await stub.SetAlias(pointing("production", number))
    await stub.YankVersion(rpc.YankVersionRequest(name=f"{REX}/versions/2"))

    async def back() -> str:
        request = rpc.RollbackAliasRequest(name=PRODUCTION, reason="bad")
        return str((await stub.RollbackAlias(request)).version)[-1:]

    # A rollback of a rollback goes further back, and skips yanked versions.
    assert [await back(), await back()] == ["3", "1"]
    with refused("FAILED_PRECONDITION", "NO_EARLIER_VERSION"):
        await back()
    await stub.SetAlias(pointing("production", 4))
    assert await back() == "1"
    with refused("NOT_FOUND", "ALIAS_NOT_FOUND"):
        await stub.RollbackAlias(rpc.RollbackAliasRequest(name=f"{REX}/aliases/canary"))


@dataclass
class Move:
    version: int
    time_us: int
    base: int  # index of the move that this move restored, or its own index


@dataclass
class Model:
    """The expected state."""

    versions: dict[int, bool] = field(default_factory=dict)  # number: in use
    moves: list[Move] = field(default_factory=list)

    @property
    def now(self) -> int:
        return self.moves[-1].version if self.moves else 0

    def target(self) -> int | None:
        """The index of the move that a rollback restores."""
        earlier = range(self.moves[-1].base - 1, -1, -1)
        others = (index for index in earlier if self.moves[index].version not in (0, self.now))
        return next((index for index in others if self.versions[self.moves[index].version]), None)


CONCEPT = ConceptName("shop", "rex")
ALIAS = AliasName("shop", "rex", "production")
FIELDS = ConceptFields(display_name="", description="", kind="CONCEPT_KIND_OBJECT", labels={}, readers=())


class AliasMachine(RuleBasedStateMachine):
    """The state machine of the catalogue and the model, change by change."""

    def __init__(self) -> None:
        super().__init__()
        self.state_machine = CatalogueStateMachine(Quotas(concepts=10, versions_per_concept=100, embedding_bytes=10**6))
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.db.row_factory = sqlite3.Row
        self.state_machine.create(self.db)
        self.entry = 0
        self.time_us = 1_000_000
        self.model = Model()

    def teardown(self) -> None:
        self.db.close()

    def _do(self, command: Command) -> dict[str, Any]:
        self.time_us += 10
        events = self.state_machine.decide(self.db, command, self.time_us)
        assert not isinstance(events, Answer)
        self.entry += 1
        value: dict[str, Any] = {}
        for index, body in enumerate(events):
            event = RecordedEvent(
                kind=body.kind,
                tenant="shop",
                request_id="r",
                request_digest="d",
                actor="ann",
                on_behalf_of="",
                body=body.body,
            )
            revision = Revision(store_id="0" * 20, shard=0, entry=self.entry, index=index)
            value = self.state_machine.apply(self.db, CommittedEvent.of(event, revision, self.time_us))
        return value

    @rule()
    def publish(self) -> None:
        command = PublishVersion(
            peer="",
            concept=CONCEPT,
            create=FIELDS,
            summary={},
            job="",
            blob="b",
            blob_digest="",
            size=1,
            tensors_digest="",
            record="",
        )
        number = self._do(command)["number"]
        assert number == len(self.model.versions) + 1
        self.model.versions[number] = True

    @precondition(lambda self: self.model.versions)
    @rule(data=st.data())
    def point(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.model.versions)))
        version = VersionName("shop", "rex", number)
        command = SetAlias(peer="", name=ALIAS, version=version, reason="", etag="", create_only=False)
        if not self.model.versions[number]:
            with pytest.raises(FailedPrecondition):
                self._do(command)
            return
        self._do(command)
        self.model.moves.append(Move(number, self.time_us, len(self.model.moves)))

    @precondition(lambda self: self.model.versions)
    @rule(data=st.data())
    def yank(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.model.versions)))
        command = YankVersion(peer="", name=VersionName("shop", "rex", number), reason="", etag="")
        if number == self.model.now:
            with pytest.raises(FailedPrecondition):
                self._do(command)
            return
        self._do(command)
        self.model.versions[number] = False

    @precondition(lambda self: not all(self.model.versions.values()))
    @rule(data=st.data())
    def unyank(self, data: st.DataObject) -> None:
        yanked = [number for number, used in self.model.versions.items() if not used]
        number = data.draw(st.sampled_from(yanked))
        self._do(UnyankVersion(peer="", name=VersionName("shop", "rex", number), etag=""))
        self.model.versions[number] = True

    @precondition(lambda self: self.model.now)
    @rule()
    def delete(self) -> None:
        self._do(DeleteAlias(peer="", name=ALIAS, reason="", etag=""))
        self.model.moves.append(Move(0, self.time_us, len(self.model.moves)))

    @precondition(lambda self: self.model.now)
    @rule()
    def roll_back(self) -> None:
        target = self.model.target()
        command = RollbackAlias(peer="", name=ALIAS, reason="", etag="")
        if target is None:
            with pytest.raises(FailedPrecondition):
                self._do(command)
            return
        self._do(command)
        self.model.moves.append(Move(self.model.moves[target].version, self.time_us, self.model.moves[target].base))

    @invariant()
    def state_equals_the_model(self) -> None:
        row = alias_table.find(self.db, ALIAS)
        assert (row["version"] if row else 0) == self.model.now
        history = alias_table.history(self.db, ALIAS, NOW, NOW, 1000)
        assert [row["version"] for row in reversed(history)] == [move.version for move in self.model.moves]
        for move in self.model.moves[-3:]:
            try:
                then = alias_table.get_at(self.db, ALIAS, move.time_us + 5)["version"]
            except NotFound:
                then = 0
            assert then == move.version
        latest = alias_table.find(self.db, AliasName("shop", "rex", "latest"))
        in_use = [number for number, used in self.model.versions.items() if used]
        assert (latest["version"] if latest else 0) == max(in_use, default=0)


TestAliasMachine = AliasMachine.TestCase
TestAliasMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)

"""A large catalogue, written through the ledger by full group commits, as by a busy registry."""

import asyncio
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from pseudoword.names import ConceptName

from registry.catalogue.commands import Command, ConceptFields, PublishVersion, Quotas
from registry.catalogue.state_machine import SHARDS, CatalogueStateMachine
from storage.ledger.ledger import Ledger, shard_of
from storage.ledger.log import Log
from storage.ledger.maintenance import write_if_due
from storage.ledger.view import View
from storage.objects.base import ObjectStore

TENANT = "shop"
PARENT = f"tenants/{TENANT}"
VERSIONS = 3
SHARD = shard_of(TENANT, SHARDS)
_CONCURRENT = 2000
_SUMMARY = {"base_model": {"family": "stable-diffusion-1", "encoders": [{"name": "text_encoder", "dimensions": 768}]}}
_STATE_MACHINE = CatalogueStateMachine(Quotas(concepts=10**9, versions_per_concept=10**9, embedding_bytes=10**15))


def words_of(size: int, count: int) -> Sequence[str]:
    """The names of `count` concepts, evenly spread among `size`."""
    return [f"word-{number * size // count:06d}" for number in range(count)]


async def seed(store: ObjectStore, size: int, views: Path) -> None:
    """`size` concepts of one tenant with three versions each, without vectors: a twentieth has the label team=t7, the
    last concept rare=yes. Then a checkpoint if one is due: a server would write it some minutes later."""
    ledger: Ledger[Command] = Ledger.open(store, _STATE_MACHINE, shards=SHARDS, view_folder=views)

    async def publish(number: int, version: int) -> None:
        fields = ConceptFields(
            display_name=f"word {number}",
            description="",
            kind="CONCEPT_KIND_OBJECT",
            labels={"team": f"t{number % 20}"} | ({"rare": "yes"} if number == size - 1 else {}),
            readers=(),
        )
        digest = f"{number:032x}{version:032x}"
        command = PublishVersion(
            peer="seeder",
            concept=ConceptName(TENANT, f"word-{number:06d}"),
            create=fields,
            summary=_SUMMARY,
            job="",
            blob=f"t/{TENANT}/blobs/{digest}/{0:016x}",
            blob_digest=digest,
            size=3200,
            tensors_digest=digest,
            record="",
        )
        await ledger.commit(
            SHARD,
            command,
            request_id=f"{number}-{version}",
            tenant=TENANT,
            digest="",
            actor="seeder",
            on_behalf_of=None,
            timeout_s=600,
        )

    try:
        for version in range(VERSIONS):
            for start in range(0, size, _CONCURRENT):
                await asyncio.gather(*(publish(n, version) for n in range(start, min(size, start + _CONCURRENT))))
    finally:
        await ledger.close()
    log = Log.open(store, book=_STATE_MACHINE.name, shards=SHARDS)
    path = views / f"shard-{SHARD}.sqlite"
    with closing(View(path, store_id=log.store_id, shard=SHARD, state_machine=_STATE_MACHINE)) as view:
        write_if_due(log, view)

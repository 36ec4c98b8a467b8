"""Measures commits a second by the numbers of writers and replicas, with and without group commit.

python -m benchmarks.registry.commits --help

The replicas are ledgers in this process on one store, each with its own views. Without group commit, an entry has the
events of one command. The fairness between replicas is the number of commits of the slowest replica, divided by an even
share.
"""

import asyncio
import itertools
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from pseudoword.names import ConceptName

from benchmarks.registry.catalogue import placed
from registry.catalogue.commands import Command, ConceptFields, CreateConcept, Quotas
from registry.catalogue.state_machine import SHARDS, CatalogueStateMachine
from storage.ledger import writer
from storage.ledger.entry import MAX_EVENTS
from storage.ledger.ledger import Ledger, shard_of
from tests.conftest import Place
from tests.registry.seeding import TENANT

_FIELDS = ConceptFields(display_name="", description="", kind="CONCEPT_KIND_OBJECT", labels={}, readers=())


@click.command()
@click.option("--store", "kind", type=click.Choice(["disk", "minio"]), default="disk", show_default=True)
@click.option("--seconds", default=4.0, show_default=True, help="Seconds for each figure.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file to write the figures to.")
def main(kind: str, seconds: float, output: Path | None) -> None:
    """Measure commits on a local disk, or on a MinIO that this command starts."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="pseudoword-bench-") as name:
        folder = Path(name)
        with placed(None, folder / kind, kind) as place:
            for replicas, writers, grouped in [
                *((1, writers, grouped) for writers in (1, 4, 16, 64) for grouped in (True, False)),
                *((3, writers, True) for writers in (12, 48)),
            ]:
                views = folder / f"views-{replicas}-{writers}-{grouped}"
                found = asyncio.run(_measure(place, views, replicas, writers, grouped, seconds))
                click.echo(json.dumps(found))
                figures.append(found)
    if output is not None:
        results = json.loads(output.read_text()) if output.exists() else {}
        results["machine"] = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        results[kind] = figures
        output.write_text(json.dumps(results, indent=1) + "\n")


async def _measure(
    place: Place, views: Path, replicas: int, writers: int, grouped: bool, seconds: float
) -> dict[str, Any]:
    store = place.open()
    writer.MAX_MUTATIONS = MAX_EVENTS if grouped else 1  # type: ignore[attr-defined]
    state_machine = CatalogueStateMachine(Quotas(concepts=10**9, versions_per_concept=10**9, embedding_bytes=10**15))
    ledgers: list[Ledger[Command]] = [
        Ledger.open(store, state_machine, shards=SHARDS, view_folder=views / str(number)) for number in range(replicas)
    ]
    shard = shard_of(TENANT, SHARDS)
    made = [0] * replicas
    numbers = itertools.count()
    before = await ledgers[0].revision(shard)
    for ledger in ledgers:
        await ledger.revision(shard)
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        while time.perf_counter() < end:
            name = f"{views.name.lower()}-{next(numbers)}"
            command = CreateConcept(peer="bench", name=ConceptName(TENANT, name), fields=_FIELDS)
            await ledgers[number % replicas].commit(
                shard,
                command,
                request_id=name,
                tenant=TENANT,
                digest="",
                actor="bench",
                on_behalf_of=None,
                timeout_s=60,
            )
            made[number % replicas] += 1

    await asyncio.gather(*(client(number) for number in range(writers)))
    after = await ledgers[0].revision(shard)
    for ledger in ledgers:
        await ledger.close()
    store.close()
    found: dict[str, Any] = {"replicas": replicas, "writers": writers, "group_commit": grouped}
    found |= {"commits_per_s": round(sum(made) / seconds), "entries": after.entry - before.entry}
    return found | {"least_of_an_even_share": round(min(made) * replicas / sum(made), 2)}


if __name__ == "__main__":
    main()

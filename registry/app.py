"""The registry server: the servicer of all resources, and its life from an unproven store to a closed ledger."""

import asyncio

from pseudoword.registry.v1.registry_pb2_grpc import (
    RegistryServiceServicer,
    add_RegistryServiceServicer_to_server,
)

from registry.api.aliases import AliasRpcs
from registry.api.concepts import ConceptRpcs
from registry.api.embeddings import EmbeddingRpcs
from registry.api.evaluations import EvaluationRpcs
from registry.api.resolve import ResolveRpcs
from registry.api.tenants import TenantRpcs
from registry.api.versions import VersionRpcs
from registry.api.watch import WatchRpcs
from registry.catalogue.commands import Quotas
from registry.catalogue.state_machine import CatalogueStateMachine
from registry.catalogue_store import CatalogueStore
from registry.pickles import Pickles
from registry.settings import RegistrySettings
from registry.signatures import SignaturePolicy
from rpc.open_store import end_when_replaced, open_fit_store, open_ledger
from rpc.server import Server
from rpc.storage_errors import STORAGE
from storage.objects.blobs import Blobs

SERVICE = "pseudoword.registry.v1.RegistryService"
# A tenant belongs to one of them, for ever; the number is fixed when a store is made.
SHARDS = 16


class RegistryServicer(
    TenantRpcs,
    ConceptRpcs,
    VersionRpcs,
    EmbeddingRpcs,
    EvaluationRpcs,
    AliasRpcs,
    ResolveRpcs,
    WatchRpcs,
    RegistryServiceServicer,
):
    """Every rpc of the contract, each from its resource's class."""


class Registry:
    """A registry on its store.

    async with Registry(settings) as registry:
        ...                                     # it serves at registry.server.address
    """

    def __init__(self, settings: RegistrySettings) -> None:
        """Raises SettingsError."""
        self._settings = settings
        self.server = Server(settings.server, name="registry", table=STORAGE)
        self._minding: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Registry":
        """Probes the store, opens the ledger, serves. Raises SettingsError, also for a store that is not fit."""
        settings = self._settings
        signatures = SignaturePolicy.of(settings.signatures)
        self._store = await asyncio.to_thread(open_fit_store, settings.store, settings.s3)
        try:
            book = CatalogueStateMachine(Quotas(**settings.quotas.model_dump()))
            self._ledger = await asyncio.to_thread(
                open_ledger, self._store, settings.store, book, shards=SHARDS, metrics=self.server.metrics
            )
        except BaseException:
            self._store.close()
            raise
        try:
            desk = CatalogueStore(self._ledger, Blobs(self._store), settings.commit_timeout)
            servicer = RegistryServicer(
                desk,
                signatures=signatures,
                pickles=Pickles(allowed=settings.import_pickles),
                keep_deleted=settings.keep_deleted,
                draining=self.server.draining,
            )
            self.server.add(add_RegistryServiceServicer_to_server, servicer, SERVICE)
            await self.server.start()
            self.server.mark_ready()
            self._minding = asyncio.create_task(end_when_replaced(self.server, self._ledger))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def run_until_signalled(self) -> None:
        """Serves until SIGTERM. Raises StoreReplaced when its store was replaced under it."""
        await self.server.run_until_signalled()
        self._ledger.refuse_replaced()

    async def __aexit__(self, *_: object) -> None:
        if self._minding is not None:
            self._minding.cancel()
        await self.server.stop(grace_s=0)
        await self._ledger.close()
        self._store.close()

"""The life cycle of the registry server."""

from pseudoword.registry.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server

from registry.api.servicer import RegistryServicer
from registry.catalogue.commands import Quotas
from registry.catalogue.state_machine import SHARDS, CatalogueStateMachine
from registry.catalogue_store import CatalogueStore
from registry.pickles import Pickles
from registry.settings import RegistrySettings
from registry.signatures import SignaturePolicy
from rpc.app import App
from rpc.server import Server
from rpc.storage_errors import STORAGE
from storage.objects.blobs import Blobs

SERVICE = "pseudoword.registry.v1.RegistryService"


class Registry(App):
    """A registry server on its store."""

    def __init__(self, settings: RegistrySettings) -> None:
        """Raises SettingsError."""
        super().__init__(Server(settings.server, name="registry", table=STORAGE))
        self._settings = settings

    async def _open(self) -> None:
        settings = self._settings
        signatures = SignaturePolicy.of(settings.signatures)
        state_machine = CatalogueStateMachine(Quotas(**settings.quotas.model_dump()))
        store, ledger = await self._open_ledger(settings.store, settings.s3, state_machine, shards=SHARDS)
        servicer = RegistryServicer(
            CatalogueStore(ledger, Blobs(store), settings.commit_timeout),
            signatures=signatures,
            pickles=Pickles(allowed=settings.import_pickles),
            keep_deleted=settings.keep_deleted,
            draining=self.server.draining,
        )
        self.server.add(add_RegistryServiceServicer_to_server, servicer, SERVICE)
        await self._serve()
        self.server.mark_ready()

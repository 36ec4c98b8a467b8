"""`python -m registry`: the registry server."""

from registry.server import Registry
from registry.settings import RegistrySettings
from rpc.logs import configure
from rpc.server import run
from rpc.settings import SettingsError


async def main() -> None:
    """Serves until SIGTERM. Raises SettingsError when its store was replaced under it."""
    settings = RegistrySettings.load("registry")
    configure("registry", settings.server.log_level, settings.server.log_format)
    async with Registry(settings) as registry:
        await registry.server.run_until_signalled()
        if registry.store_replaced:
            raise SettingsError(
                f"the store {settings.store.address} was replaced: start again to serve what is there now"
            )


if __name__ == "__main__":
    run("registry", main())

"""`python -m registry`: the registry server."""

from registry.server import Registry
from registry.settings import RegistrySettings
from rpc.logs import configure
from rpc.server import run


async def serve(settings: RegistrySettings) -> None:
    """Serves until SIGTERM."""
    async with Registry(settings) as registry:
        await registry.server.run_until_signalled()


if __name__ == "__main__":
    loaded = RegistrySettings.load("registry")
    configure("registry", loaded.server.log_level, loaded.server.log_format)
    run("registry", serve(loaded))

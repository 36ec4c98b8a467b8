"""`python -m registry`: the registry server."""

from registry.app import Registry
from registry.settings import RegistrySettings
from rpc.logs import configure
from rpc.server import run


async def main() -> None:
    """Serves until SIGTERM."""
    settings = RegistrySettings.load("registry")
    configure("registry", settings.server.log_level, settings.server.log_format)
    async with Registry(settings) as registry:
        await registry.run_until_signalled()


if __name__ == "__main__":
    run("registry", main())

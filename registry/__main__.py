"""`python -m registry`: runs the registry server."""

from registry.app import Registry
from registry.settings import RegistrySettings
from rpc.app import run

if __name__ == "__main__":
    run("registry", Registry, lambda: RegistrySettings.load("registry"))

"""`python -m service` runs the Generation server."""

from diffusion.libraries import quiet_imports
from rpc.app import App, run
from service.settings import GenerationSettings


def generation(settings: GenerationSettings) -> App:
    """The app for `settings`."""
    # Loads torch, which --help does not need.
    with quiet_imports():
        from service.app import Generation

    return Generation(settings)


if __name__ == "__main__":
    run("generation", generation, lambda: GenerationSettings.load("service"))

"""`python -m service`: the Generation service."""

from diffusion.libraries import quiet_imports
from rpc.app import App, run
from service.settings import GenerationSettings


def generation(settings: GenerationSettings) -> App:
    """The app of `settings`."""
    # Loads torch, for which --help need not wait.
    with quiet_imports():
        from service.app import Generation

    return Generation(settings)


if __name__ == "__main__":
    run("generation", generation, lambda: GenerationSettings.load("service"))

"""`python -m service` runs the Generation server."""

from rpc.app import App, run
from service.settings import GenerationSettings


def generation(settings: GenerationSettings) -> App:
    """The app for `settings`."""
    from service.app import Generation  # loads torch, which --help does not need

    return Generation(settings)


if __name__ == "__main__":
    run("generation", generation, lambda: GenerationSettings.load("service"))

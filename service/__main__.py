"""`python -m service`: the Generation service."""

from rpc.app import App, run
from service.settings import GenerationSettings


def generation(settings: GenerationSettings) -> App:
    """The app of `settings`."""
    from service.app import Generation  # loads torch, for which --help need not wait

    return Generation(settings)


if __name__ == "__main__":
    run("generation", generation, lambda: GenerationSettings.load("service"))

"""`python -m trainer`: the trainer. `python -m trainer worker`: a worker of its own for a trainer whose queue is NATS.
`python -m trainer fit-start` fits a learned start for a checkpoint."""

import sys
from functools import partial

from diffusion.libraries import quiet_imports
from rpc.app import App, run
from trainer.settings import TrainerSettings


def trainer(settings: TrainerSettings, *, worker: bool) -> App:
    """The app for `settings`."""
    # Loads torch, which --help does not need.
    with quiet_imports():
        from trainer.app import Trainer

    return Trainer(settings, worker=worker)


if __name__ == "__main__":
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command == "fit-start":
        from trainer.learned.command import fit_start  # draws plots, which a server has no use for

        fit_start(sys.argv[2:], prog_name="python -m trainer fit-start")
    elif command == "worker":
        run("worker", partial(trainer, worker=True), lambda: TrainerSettings.load("trainer worker", sys.argv[2:]))
    else:
        run("trainer", partial(trainer, worker=False), lambda: TrainerSettings.load("trainer"))

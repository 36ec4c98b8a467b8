"""`python -m trainer` runs the trainer, `python -m trainer worker` a separate worker for a trainer whose queue is NATS.
`python -m trainer fit-start` fits a learned start for a checkpoint."""

import sys
from functools import partial

from rpc.app import App, run
from trainer.settings import TrainerSettings


def trainer(settings: TrainerSettings, *, worker: bool) -> App:
    """The app for `settings`."""
    from trainer.app import Trainer  # loads torch, which --help does not need

    return Trainer(settings, worker=worker)


if __name__ == "__main__":
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command == "fit-start":
        from trainer.learned.command import fit_start  # loads matplotlib, which no server needs

        fit_start(sys.argv[2:], prog_name="python -m trainer fit-start")
    elif command == "worker":
        run("worker", partial(trainer, worker=True), lambda: TrainerSettings.load("trainer worker", sys.argv[2:]))
    else:
        run("trainer", partial(trainer, worker=False), lambda: TrainerSettings.load("trainer"))

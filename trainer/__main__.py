"""`python -m trainer`: the trainer. `python -m trainer worker`: a worker of its own for one that has its jobs trained
elsewhere. `python -m trainer fit-start` fits a learned start for its checkpoint."""

import sys

from rpc.logs import configure
from rpc.server import run
from trainer.app import Trainer
from trainer.settings import TrainerSettings


async def serve(settings: TrainerSettings, *, worker: bool) -> None:
    """Serves until SIGTERM."""
    async with Trainer(settings, worker=worker) as trainer:
        await trainer.run_until_signalled()


if __name__ == "__main__":
    if sys.argv[1:2] == ["fit-start"]:
        from trainer.learned.command import fit_start  # draws plots, which a server has no use for

        fit_start(sys.argv[2:], prog_name="python -m trainer fit-start")
    named = sys.argv[1:2] == ["worker"]
    name = "worker" if named else "trainer"
    loaded = TrainerSettings.load("trainer worker", sys.argv[2:]) if named else TrainerSettings.load("trainer")
    configure(name, loaded.server.log_level, loaded.server.log_format)
    run(name, serve(loaded, worker=named))

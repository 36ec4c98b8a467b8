"""`python -m trainer`: the trainer. `python -m trainer fit-start` fits a learned start for its checkpoint."""

import sys

from rpc.logs import configure
from rpc.server import run
from trainer.learned.command import fit_start
from trainer.server import Trainer
from trainer.settings import TrainerSettings


async def serve(settings: TrainerSettings) -> None:
    """Serves until SIGTERM."""
    async with Trainer(settings) as trainer:
        await trainer.run_until_signalled()


if __name__ == "__main__":
    if sys.argv[1:2] == [fit_start.name]:
        fit_start(sys.argv[2:], prog_name=f"python -m trainer {fit_start.name}")
    loaded = TrainerSettings.load("trainer")
    configure("trainer", loaded.server.log_level, loaded.server.log_format)
    run("trainer", serve(loaded))

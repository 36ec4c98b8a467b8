"""`python -m trainer`: the trainer."""

from rpc.logs import configure
from rpc.server import run
from trainer.server import Trainer
from trainer.settings import TrainerSettings


async def serve(settings: TrainerSettings) -> None:
    """Serves until SIGTERM."""
    async with Trainer(settings) as trainer:
        await trainer.run_until_signalled()


if __name__ == "__main__":
    loaded = TrainerSettings.load("trainer")
    configure("trainer", loaded.server.log_level, loaded.server.log_format)
    run("trainer", serve(loaded))

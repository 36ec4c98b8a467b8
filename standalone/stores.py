"""Stores as arguments of commands."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from registry.catalogue.commands import Quotas
from registry.catalogue.state_machine import CatalogueStateMachine
from rpc.open_store import S3Settings, StoreSettings, open_fit_store
from rpc.settings import Settings, SettingsError, explain
from service.batches.state_machine import BatchStateMachine
from storage.errors import StorageError
from storage.ledger.state_machine import StateMachine
from storage.objects.base import ObjectStore
from storage.objects.open import open_store
from trainer.jobs.state_machine import TrainerStateMachine

HELP = (
    "STORE is a folder, file:///folder or s3://bucket[/prefix]; the S3 settings are those of the servers, from "
    "PSEUDOWORD_S3__ENDPOINT, PSEUDOWORD_S3__ACCESS_KEY, PSEUDOWORD_S3__SECRET_KEY and so on."
)


class _Access(Settings):
    s3: S3Settings = S3Settings()


def state_machines() -> Mapping[str, StateMachine[Any]]:
    """The state machines that a store may have been made for, by name."""
    return {
        state_machine.name: state_machine
        for state_machine in (CatalogueStateMachine(Quotas()), TrainerStateMachine(), BatchStateMachine())
    }


@contextmanager
def opened(address: str, *, existing: bool, fit: bool = False) -> Iterator[ObjectStore]:
    """The store at `address`. `existing`: a folder must exist already. `fit`: the store is probed, because the command
    writes to it while servers run. An error, also within the context, ends the command with a message."""
    try:
        folder = address.removeprefix("file://")
        if existing and not folder.startswith("s3://") and not Path(folder).expanduser().is_dir():
            raise click.ClickException(f"there is no folder {folder}")
        s3 = _Access().s3
        store = open_fit_store(StoreSettings(address=address), s3) if fit else open_store(address, s3.access())
        try:
            yield store
        finally:
            store.close()
    except StorageError as error:
        raise click.ClickException(error.message) from None
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    except ValidationError as error:
        raise click.ClickException(explain(error)) from None

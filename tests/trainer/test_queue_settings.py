"""Settings of the connection to NATS: errors are found before the trainer connects."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rpc.settings import SettingsError
from tests.trainer.conftest import settings_of
from trainer.app import Trainer
from trainer.queue.settings import NatsSettings


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"servers": "localhost:4222"}, "nats://HOST:PORT"),
        ({"servers": " , "}, "nats://HOST:PORT"),
        ({"servers": "nats://one:4222,http://two:4222"}, "nats://HOST:PORT"),
        ({"user": "ann"}, "password_file"),
        ({"user": "ann", "password_file": "p", "token_file": "t"}, "exclude each other"),
        ({"cert": "c"}, "cert and key"),
        ({"cert": "c", "key": "k"}, "need ca"),
        ({"stream": "no.dots"}, "pattern"),
    ],
)
def test_invalid_nats_settings_are_rejected(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        NatsSettings.model_validate(fields)


def test_credentials_come_from_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    settings = NatsSettings(servers="nats://one:4222, nats://two:4222", token_file=secret)
    assert settings.options() == {"servers": ["nats://one:4222", "nats://two:4222"], "token": "s3cret"}
    settings = NatsSettings(user="ann", password_file=secret)
    assert settings.options() == {"servers": ["nats://127.0.0.1:4222"], "user": "ann", "password": "s3cret"}


@pytest.mark.parametrize("field", ["token_file", "ca"])
def test_missing_credential_file_is_a_settings_error(field: str, tmp_path: Path) -> None:
    settings = NatsSettings.model_validate({field: tmp_path / "absent"})
    with pytest.raises(SettingsError):
        settings.options()


def test_separate_worker_needs_the_jetstream_queue(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"queue\.kind jetstream"):
        Trainer(settings_of(tmp_path, "127.0.0.1:1"), worker=True)

"""Signatures over the tensors digest: made with a private key, checked when a version is published."""

import base64
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pseudoword.registry.v1 import registry_pb2 as rpc
from pseudoword.registry.v1 import resources_pb2 as res

from rpc.settings import SettingsError
from storage.signatures import Keys, KeysInvalid, sign
from storage.tensors import tensors_digest
from tests.registry.conftest import Start
from tests.registry.requests import REX, embedding, publishing, refused, vectors, version

DIGEST = tensors_digest({"text_encoder": vectors(1.0)})


@pytest.fixture
def private_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def key_file(tmp_path: Path, private_key: Ed25519PrivateKey) -> Path:
    path = tmp_path / "keys.toml"
    raw = base64.b64encode(private_key.public_key().public_bytes_raw()).decode()
    path.write_text(f'[keys]\nrelease = "{raw}"\n')
    return path


def _signed(value: bytes, key: str = "release", algorithm: str = "ed25519") -> rpc.PublishVersionRequest:
    signature = res.Signature(algorithm=algorithm, key_id=key, value=value)
    return publishing(1.0, version=version(signatures=[signature]))


async def test_only_versions_with_a_valid_signature_are_published(
    start: Start, key_file: Path, private_key: Ed25519PrivateKey
) -> None:
    stub: Any = await (await start(signatures={"keys": key_file, "required": True})).call()
    good = sign(private_key, DIGEST)
    published = await stub.PublishVersion(_signed(good))
    assert published.tensors_digest == DIGEST
    read = await stub.GetVersion(rpc.GetVersionRequest(name=published.name))
    assert Keys.read(key_file).signer(read.tensors_digest, read.signatures) == "release"
    for request in (
        _signed(sign(private_key, "0" * 64)),
        _signed(good, key="other"),
        _signed(good, algorithm="rsa"),
        _signed(good[:-1]),
    ):
        with refused("INVALID_ARGUMENT", "SIGNATURE_INVALID") as refusal:
            await stub.PublishVersion(request)
        assert refusal.fields == ["version.signatures[0]"]
    with refused("FAILED_PRECONDITION", "SIGNATURE_REQUIRED", tensors_digest=DIGEST):
        await stub.PublishVersion(publishing(1.0))
    with refused("FAILED_PRECONDITION", "SIGNATURE_REQUIRED"):
        await stub.ImportVersion(rpc.ImportVersionRequest(parent=REX, data=embedding(2.0)))


async def test_signatures_are_kept_unchecked_without_keys(stub: Any, private_key: Ed25519PrivateKey) -> None:
    published = await stub.PublishVersion(_signed(b"whatever", key="mine"))
    assert [signature.key_id for signature in published.signatures] == ["mine"]


async def test_invalid_key_files_are_rejected(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    with pytest.raises(SettingsError, match="No such file"):
        await start(signatures={"keys": path})
    for text in ("", "[keys]\n", '[keys]\na = "short"\n', "[keys]\na = 3\n", "keys = 3\n", "nonsense"):
        path.write_text(text)
        with pytest.raises(KeysInvalid):
            Keys.read(path)

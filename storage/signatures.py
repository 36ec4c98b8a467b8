"""Ed25519 signatures over a version's tensors digest.

The signed message is the digest as 64 hex digits in ASCII. A key file is TOML with public keys by name, each the 32 raw
bytes in base64 (from a PEM file: `openssl pkey -pubin -outform DER | tail -c 32 | base64`):

    [keys]
    release = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
"""

import base64
import binascii
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ED25519 = "ed25519"


class Signature(Protocol):
    """The Signature message of the protos, or any object with the same fields."""

    algorithm: str
    key_id: str
    value: bytes


class KeysInvalid(Exception):
    """A key file cannot be used; the message gives the reason."""


class Keys:
    """Public keys by name."""

    def __init__(self, keys: Mapping[str, Ed25519PublicKey]) -> None:
        self._keys = dict(keys)

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """The keys of a key file. Raises KeysInvalid."""
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))["keys"]
            keys = {name: Ed25519PublicKey.from_public_bytes(_raw(text)) for name, text in table.items()}
        except OSError as error:
            raise KeysInvalid(f"{path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, KeyError, AttributeError, TypeError, ValueError) as error:
            raise KeysInvalid(f"{path}: not a TOML file of Ed25519 public keys below [keys]: {error}") from None
        if not keys:
            raise KeysInvalid(f"{path}: the table [keys] is empty; add a public key")
        return cls(keys)

    def fault(self, tensors_digest: str, signature: Signature) -> str:
        """The fault of a signature; empty when it verifies: its key is known and made it over this digest."""
        if signature.algorithm != ED25519:
            return f"the algorithm {signature.algorithm!r} is not supported; use {ED25519!r}"
        key = self._keys.get(signature.key_id)
        if key is None:
            return f"the key {signature.key_id!r} is not in the key file"
        try:
            key.verify(signature.value, tensors_digest.encode())
        except InvalidSignature:
            return f"it is not a signature of the key {signature.key_id!r} over this tensors digest"
        return ""

    def signer(self, tensors_digest: str, signatures: Iterable[Signature]) -> str | None:
        """The name of the first key with a valid signature over this digest; None when there is no valid signature."""
        return next((s.key_id for s in signatures if not self.fault(tensors_digest, s)), None)


def sign(private_key: Ed25519PrivateKey, tensors_digest: str) -> bytes:
    """The value of a signature over `tensors_digest`: 64 bytes."""
    return private_key.sign(tensors_digest.encode())


def _raw(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the key {text[:60]!r} is not base64") from error

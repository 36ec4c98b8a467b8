"""The signatures that a version needs to be published."""

from collections.abc import Sequence
from typing import Self

from pseudoword.registry.v1 import resources_pb2

from registry.settings import SignatureSettings
from rpc.errors import FailedPrecondition, InvalidArgument
from rpc.settings import SettingsError
from storage.signatures import Keys, KeysInvalid


class SignaturePolicy:
    """Without `keys`, signatures are stored unverified, for clients that verify them with their own keys."""

    def __init__(self, keys: Keys | None, *, required: bool) -> None:
        self._keys = keys
        self._required = required

    @classmethod
    def of(cls, settings: SignatureSettings) -> Self:
        """Raises SettingsError for an unusable key file."""
        try:
            keys = None if settings.keys is None else Keys.read(settings.keys)
        except KeysInvalid as error:
            raise SettingsError(f"signatures.keys: {error}") from None
        return cls(keys, required=settings.required)

    def check(self, signatures: Sequence[resources_pb2.Signature], tensors_digest: str) -> None:
        """Raises InvalidArgument (SIGNATURE_INVALID) for a signature that does not verify, FailedPrecondition
        (SIGNATURE_REQUIRED) when a signature is required and there is none."""
        if self._keys is None:
            return
        faults = [self._keys.fault(tensors_digest, signature) for signature in signatures]
        violations = [(f"version.signatures[{index}]", fault) for index, fault in enumerate(faults) if fault]
        if violations:
            raise InvalidArgument(
                f"a signature does not verify: {violations[0][1]}", reason="SIGNATURE_INVALID", violations=violations
            )
        if self._required and not signatures:
            raise FailedPrecondition(
                f"this registry accepts signed versions only: sign the tensors digest {tensors_digest}",
                reason="SIGNATURE_REQUIRED",
                metadata={"tensors_digest": tensors_digest},
            )

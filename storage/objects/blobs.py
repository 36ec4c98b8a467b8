"""Blobs: content that is too large for the log (tensors, recipes, curves, previews). A blob is written before the entry
that names it."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Self

from storage.errors import Damaged, InvalidName
from storage.objects.base import ObjectStore

_NAME = re.compile(r"t/([a-z][a-z0-9-]{0,62})/blobs/[0-9a-f]{64}/[0-9a-f]{16}")


def tenant_of(name: str) -> str | None:
    """The tenant that the blob `name` belongs to; None when `name` is not a blob's name."""
    match = _NAME.fullmatch(name)
    return None if match is None else match[1]


@dataclass(frozen=True, kw_only=True)
class Blob:
    """`name`: the object's name. `sha256`: of its bytes, in hex. `size`: in bytes."""

    name: str
    sha256: str
    size: int

    @classmethod
    def of(cls, tenant: str, data: bytes) -> Self:
        """A blob with a new name for `data`. Writes nothing."""
        digest = hashlib.sha256(data).hexdigest()
        return cls(name=f"t/{tenant}/blobs/{digest}/{secrets.token_hex(8)}", sha256=digest, size=len(data))


class Blobs:
    """Content-addressed objects `t/<tenant>/blobs/<sha256>/<random>` in a store. All methods block.

    The random part makes each upload a separate object: a late deletion of an unused upload never removes another
    upload of the same content.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def put(self, tenant: str, data: bytes) -> Blob:
        """Write a new object. Raises the errors of ObjectStore.put."""
        blob = Blob.of(tenant, data)
        self._store.put(blob.name, data)
        return blob

    def delete(self, blob: Blob) -> None:
        """Remove an upload that no entry names or will name. Raises the errors of ObjectStore.delete."""
        self._store.delete(blob.name)

    def get(self, name: str) -> bytes:
        """The bytes of the blob `name`. Raises ObjectMissing, Damaged when they do not match the digest in the name,
        and InvalidName when it is not a blob's name."""
        if tenant_of(name) is None:
            raise InvalidName(f"{name[:80]!r} is not the name of a blob", object=name[:80])
        data = self._store.get(name)
        found = hashlib.sha256(data).hexdigest()
        if found != name.split("/")[3]:
            raise Damaged(name, f"its {len(data)} bytes have the digest {found}, not the one in its name")
        return data

"""The format of derived objects (segments and snapshots): a header line of JSON, then the compressed payload.

Header and payload have digests, so damage is detected before the content is used.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator
from typing import Any

from storage.errors import Damaged

_DIGEST = "digest"
_PIECE = 2**16


def encode(header: dict[str, Any], payload: bytes) -> bytes:
    """An object of `header` and `payload`; `payload` must already be compressed with zlib."""
    body = header | {"payload_sha256": hashlib.sha256(payload).hexdigest(), "payload_bytes": len(payload)}
    return _line(body | {_DIGEST: hashlib.sha256(_line(body)).hexdigest()}) + payload


def decode(name: str, data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the compressed payload. Raises Damaged, which names the object `name`."""
    line, _, payload = data.partition(b"\n")
    try:
        body = json.loads(line)
        digest = body.pop(_DIGEST)
        whole = digest == hashlib.sha256(_line(body)).hexdigest()
        whole = whole and body["payload_sha256"] == hashlib.sha256(payload).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(name, f"its header is invalid ({type(error).__name__})") from error
    if not whole:
        raise Damaged(name, "its digest does not match")
    return body, payload


def decompress(name: str, payload: bytes, size: int) -> bytes:
    """Decompress `payload` to `size` bytes. Raises Damaged."""
    return b"".join(pieces(name, payload, size))


def pieces(name: str, payload: bytes, size: int) -> Iterator[bytes]:
    """Decompress `payload` to `size` bytes, piece by piece. Raises Damaged, possibly after some pieces."""
    reader, given = zlib.decompressobj(), 0
    try:
        for start in range(0, len(payload), _PIECE):
            piece = reader.decompress(payload[start : start + _PIECE])
            given += len(piece)
            if given > size:
                break
            yield piece
    except zlib.error as error:
        raise Damaged(name, f"it cannot be decompressed ({error})") from error
    if given != size or not reader.eof:
        raise Damaged(name, f"it does not hold the {size} bytes that its header states")


def _line(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"

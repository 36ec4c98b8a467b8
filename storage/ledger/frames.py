"""How derived objects are written: a line of JSON that says what they hold, then the compressed bytes.

Both are under digests, so that damage is known before anything is made of it.
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
    """`payload` is compressed already (zlib)."""
    body = header | {"payload_sha256": hashlib.sha256(payload).hexdigest(), "payload_bytes": len(payload)}
    return _line(body | {_DIGEST: hashlib.sha256(_line(body)).hexdigest()}) + payload


def decode(name: str, data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header, and the payload as it was given. Raises Damaged naming the object `name`."""
    line, _, payload = data.partition(b"\n")
    try:
        body = json.loads(line)
        digest = body.pop(_DIGEST)
        whole = digest == hashlib.sha256(_line(body)).hexdigest()
        whole = whole and body["payload_sha256"] == hashlib.sha256(payload).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(name, f"it does not say what it holds ({type(error).__name__})") from error
    if not whole:
        raise Damaged(name, "its digest does not match")
    return body, payload


def decompress(name: str, payload: bytes, size: int) -> bytes:
    """The `size` bytes that `payload` holds. Raises Damaged."""
    return b"".join(pieces(name, payload, size))


def pieces(name: str, payload: bytes, size: int) -> Iterator[bytes]:
    """The `size` bytes that `payload` holds, piece by piece. Raises Damaged, perhaps after some of them."""
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
        raise Damaged(name, f"it does not hold the {size} bytes that it should")


def _line(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"

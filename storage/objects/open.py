"""From a store's address to the store."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from storage.errors import BadAddress
from storage.objects.base import ObjectStore
from storage.objects.disk import DiskStore
from storage.objects.s3 import S3Access, S3Store


def open_store(address: str, s3: S3Access | None = None) -> ObjectStore:
    """Open `file:///folder`, a plain path, or `s3://bucket[/prefix]` (which needs `s3`).

    Raises BadAddress, and what DiskStore raises. Says nothing about whether the store keeps its promises: probe() does.
    """
    if "://" not in address:
        if not address:
            raise BadAddress("a store address is empty: give a folder or s3://bucket")
        return DiskStore(Path(address).expanduser())
    parts = urlsplit(address)
    if parts.query or parts.fragment:
        raise BadAddress(f"{address!r}: a store address takes no query and no fragment")
    match parts.scheme:
        case "file":
            if parts.netloc not in ("", "localhost") or not parts.path:
                raise BadAddress(f"{address!r} must be file:///absolute/folder")
            return DiskStore(Path(unquote(parts.path)))
        case "s3":
            if not parts.netloc or "@" in parts.netloc:
                raise BadAddress("an S3 address is s3://bucket[/prefix]; keys and endpoint are settings of their own")
            if s3 is None:
                raise BadAddress(f"{address!r} needs the S3 settings: endpoint, access key, secret key, region")
            return S3Store(s3, parts.netloc, parts.path.strip("/"))
        case other:
            raise BadAddress(f"no store has the scheme {other!r}: give a folder, file:// or s3://")

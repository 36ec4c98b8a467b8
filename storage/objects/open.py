"""Opens a store by its address."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from storage.errors import BadAddress
from storage.objects.base import ObjectStore
from storage.objects.disk import DiskStore
from storage.objects.s3 import S3Access, S3Store


def open_store(address: str, s3: S3Access | None = None) -> ObjectStore:
    """Open `file:///folder`, a plain path, or `s3://bucket[/prefix]` (which needs `s3`).

    Raises BadAddress, and the errors of DiskStore. Does not check the store's guarantees: probe() does.
    """
    if "://" not in address:
        if not address:
            raise BadAddress("the store address is empty: give a folder or s3://bucket")
        return DiskStore(Path(address).expanduser())
    parts = urlsplit(address)
    if parts.query or parts.fragment:
        raise BadAddress(f"{address!r}: a store address must not have a query or a fragment")
    match parts.scheme:
        case "file":
            if parts.netloc not in ("", "localhost") or not parts.path:
                raise BadAddress(f"{address!r} must be file:///absolute/folder")
            return DiskStore(Path(unquote(parts.path)))
        case "s3":
            if not parts.netloc or "@" in parts.netloc:
                raise BadAddress("an S3 address is s3://bucket[/prefix]; give keys and endpoint in the S3 settings")
            if s3 is None:
                raise BadAddress(f"{address!r} needs the S3 settings: endpoint, access key, secret key, region")
            return S3Store(s3, parts.netloc, parts.path.strip("/"))
        case other:
            raise BadAddress(f"the scheme {other!r} is not supported: give a folder, file:// or s3://")

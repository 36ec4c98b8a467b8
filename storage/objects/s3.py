"""Objects in a bucket of MinIO, or of any S3 store that honours `If-None-Match: *`, through the minio SDK.

Two clients. Create-if-absent uses the client without retries: after a lost response, a hidden retry would report this
process's own success as "already exists". Everything else uses the client with retries.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import certifi
import minio
import urllib3
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from storage.errors import (
    BadAddress,
    ClockSkew,
    ObjectExists,
    ObjectMissing,
    StorageError,
    StoreRefused,
    StoreUnavailable,
)
from storage.objects.base import ObjectInfo, check_name, check_prefix

_MISSING = {"NoSuchKey", "NoSuchObject"}
_EXISTS = {"PreconditionFailed"}
# Temporary errors of status 4xx. All other 4xx codes are refusals.
_LATER = {
    "ConditionalRequestConflict",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "TooManyRequests",
    "XMinioServerNotInitialized",
}
_STATUS_LATER = {408, 409, 425, 429}
_WITHOUT_LENGTH = {204, 304}


@dataclass(frozen=True, kw_only=True)
class S3Access:
    """Access to an S3 store. `endpoint` is host[:port]; `ca_file` has PEM certificates to trust instead of the
    system's. Without keys, requests are not signed."""

    endpoint: str
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    region: str = "us-east-1"
    secure: bool = True
    ca_file: Path | None = None
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 15.0
    connections: int = 32

    def __post_init__(self) -> None:
        if not self.endpoint or "/" in self.endpoint:
            raise BadAddress(f"the S3 endpoint must be host:port without a scheme, not {self.endpoint!r}")
        if bool(self.access_key) != bool(self.secret_key):
            raise BadAddress("only one of the S3 access key and the secret key is set: set both or neither")
        if not self.region:
            raise BadAddress("the S3 region is empty: set it (MinIO's default is us-east-1)")


class S3Store:
    """An ObjectStore in an existing bucket, with all names under `prefix`. Must not be shared across a fork."""

    def __init__(self, access: S3Access, bucket: str, prefix: str = "") -> None:
        self._access = access
        self._bucket = bucket
        self._prefix = f"{check_name(prefix)}/" if prefix else ""
        no_retry = urllib3.Retry(total=0, redirect=0, raise_on_status=False)
        some = urllib3.Retry(
            total=3,
            backoff_factor=0.1,
            backoff_jitter=0.1,
            status_forcelist=[500, 502, 503, 504],
            raise_on_status=False,
        )
        self._pools = [_pool(access, no_retry), _pool(access, some)]
        self._conditional, self._client = (_client(access, pool) for pool in self._pools)

    @property
    def description(self) -> str:
        return f"s3://{self._bucket}/{self._prefix} at {self._access.endpoint}"

    def put_if_absent(self, name: str, data: bytes) -> None:
        key = self._key(name)
        with self._mapped_errors(name):
            # The public put_object would send the header as user metadata, and the condition would be lost silently.
            # If this private call stops sending the header, the tests of storage/ and the start-up probe fail.
            self._conditional._put_object(self._bucket, key, data, {"If-None-Match": "*"})

    def put(self, name: str, data: bytes) -> None:
        with self._mapped_errors(name):
            self._client.put_object(self._bucket, self._key(name), BytesIO(data), len(data))

    def get(self, name: str) -> bytes:
        return self._get(name, 0, 0)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        if length <= 0:
            self.stat(name)
            return b""
        try:
            return self._get(name, offset, length)
        except StoreRefused as refusal:
            # The offset is past the end of the object: no bytes, as from a disk.
            if refusal.metadata.get("code") == "InvalidRange":
                return b""
            raise

    def stat(self, name: str) -> ObjectInfo:
        with self._mapped_errors(name):
            return self._info(self._client.stat_object(self._bucket, self._key(name)))

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Sequence[ObjectInfo]:
        with self._mapped_errors(prefix):
            found = self._client.list_objects(
                self._bucket,
                prefix=self._prefix + check_prefix(prefix),
                start_after=self._prefix + start_after if start_after else None,
                recursive=True,
            )
            return [self._info(item) for item in islice(found, limit)]

    def delete(self, name: str) -> None:
        with self._mapped_errors(name):
            self._client.remove_object(self._bucket, self._key(name))

    def now(self) -> datetime:
        with self._mapped_errors(self._bucket):
            # The SDK has no public call that returns the Date header of a response.
            answer = self._client._execute("HEAD", self._bucket)
            try:
                return parsedate_to_datetime(answer.headers["Date"]).astimezone(UTC)
            except (KeyError, ValueError):
                raise StoreRefused(f"{self.description} sends responses without a valid Date header") from None

    def close(self) -> None:
        for pool in self._pools:
            pool.clear()

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    def _get(self, name: str, offset: int, length: int) -> bytes:
        with self._mapped_errors(name):
            answer = self._client.get_object(self._bucket, self._key(name), offset=offset, length=length)
            try:
                body: bytes = answer.read()
                return body
            finally:
                answer.close()
                answer.release_conn()

    def _info(self, item: Any) -> ObjectInfo:
        return ObjectInfo(
            name=item.object_name.removeprefix(self._prefix), size=item.size or 0, modified=item.last_modified
        )

    @contextmanager
    def _mapped_errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except S3Error as error:
            raise self._mapped(name, error.code or "", error.response.status, error.message or "") from error
        except ServerError as error:
            raise self._mapped(name, "", error.status_code, str(error)) from error
        except InvalidResponseError as error:
            # The response is not S3's: a proxy's error page, for example.
            raise self._mapped(name, "", error._code, str(error)[:200]) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise StoreUnavailable(f"{self.description} does not answer: {error}", object=name) from error
        except (MinioException, ValueError) as error:
            raise StoreRefused(f"{self.description}: {error}", object=name) from error

    def _mapped(self, name: str, code: str, status: int, message: str) -> StorageError:
        if code in _EXISTS or status == 412:
            return ObjectExists(name)
        if code in _MISSING:
            return ObjectMissing(name)
        why = f"{self.description}, object {name!r}: {code or status} {message}"
        if code == "RequestTimeTooSkewed":
            return ClockSkew(f"{why}; set this machine's clock", object=name)
        if code in _LATER or status >= 500 or (status in _STATUS_LATER and not code):
            return StoreUnavailable(why, object=name, code=code)
        return StoreRefused(why, object=name, code=code)


class _CompleteResponses(urllib3.PoolManager):
    """Refuses a response that was truncated within its headers. http.client takes the end of the connection for the end
    of the headers; a response without a length would then look like an empty object."""

    def urlopen(self, *arguments: Any, **options: Any) -> Any:
        answer = super().urlopen(*arguments, **options)
        has_length = "Content-Length" in answer.headers or "Transfer-Encoding" in answer.headers
        if not has_length and answer.status not in _WITHOUT_LENGTH:
            answer.close()
            raise urllib3.exceptions.ProtocolError("the response was truncated within its headers")
        return answer


def _pool(access: S3Access, retries: urllib3.Retry) -> urllib3.PoolManager:
    trusted = str(access.ca_file) if access.ca_file else os.environ.get("SSL_CERT_FILE") or certifi.where()
    return _CompleteResponses(
        timeout=urllib3.Timeout(connect=access.connect_timeout_s, read=access.read_timeout_s),
        maxsize=access.connections,
        cert_reqs="CERT_REQUIRED",
        ca_certs=trusted,
        retries=retries,
    )


def _client(access: S3Access, pool: urllib3.PoolManager) -> Any:
    try:
        return minio.Minio(
            endpoint=access.endpoint,
            access_key=access.access_key,
            secret_key=access.secret_key,
            region=access.region,
            secure=access.secure,
            http_client=pool,
        )
    except ValueError as error:
        raise BadAddress(f"the S3 endpoint {access.endpoint!r} is invalid: {error}") from error

"""Creates the bucket of the store's address if it does not exist. Runs in the registry's image, before the registry.

Reads the registry's settings: PSEUDOWORD_STORE__ADDRESS, PSEUDOWORD_S3__*. Waits up to a minute for a store that is
starting. Exits with status 1 and the reason if the store refuses.
"""

import sys
from urllib.parse import urlsplit

import certifi
import minio
import urllib3
from minio.error import MinioException, S3Error, ServerError
from tenacity import retry, retry_if_exception, stop_after_delay, wait_fixed

from rpc.open_store import S3Settings, StoreSettings
from rpc.settings import Settings, SettingsError


class _Settings(Settings):
    store: StoreSettings
    s3: S3Settings = S3Settings()


_STARTING = {"XMinioServerNotInitialized", "SlowDown"}


def _starting(error: BaseException) -> bool:
    """Whether the error is temporary: the store is starting."""
    if isinstance(error, S3Error):
        return error.code in _STARTING
    return isinstance(error, (urllib3.exceptions.HTTPError, ServerError))


@retry(retry=retry_if_exception(_starting), stop=stop_after_delay(60), wait=wait_fixed(1), reraise=True)
def make(client: minio.Minio, bucket: str) -> None:
    """Creates the bucket, unless it exists and belongs to this account."""
    if client.bucket_exists(bucket):
        return
    try:
        client.make_bucket(bucket)
    except S3Error as error:
        if error.code != "BucketAlreadyOwnedByYou":  # another replica has created it meanwhile
            raise


def main() -> None:
    settings = _Settings.load("make_bucket")
    access = settings.s3.access()
    if access is None:
        raise SettingsError("s3.endpoint is not set")
    client = minio.Minio(
        endpoint=access.endpoint,
        access_key=access.access_key,
        secret_key=access.secret_key,
        region=access.region,
        secure=access.secure,
        http_client=urllib3.PoolManager(retries=False, timeout=10, ca_certs=str(access.ca_file or certifi.where())),
    )
    make(client, urlsplit(settings.store.address).netloc)


if __name__ == "__main__":
    try:
        main()
    except (SettingsError, MinioException, urllib3.exceptions.HTTPError) as error:
        sys.stderr.write(f"make_bucket: {error}\n")
        raise SystemExit(1) from None

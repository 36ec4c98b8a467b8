"""The guarantees of storage/objects/base.py, on both stores."""

import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from rpc.open_store import S3Settings
from storage.errors import (
    BadAddress,
    Damaged,
    InvalidName,
    ObjectExists,
    ObjectMissing,
    StorageError,
    StoreRefused,
    StoreUnavailable,
    StoreUnfit,
)
from storage.objects.base import ObjectInfo, ObjectStore
from storage.objects.blobs import Blobs
from storage.objects.disk import DiskStore, refuse_network_filesystem
from storage.objects.open import open_store
from storage.objects.probe import probe
from storage.objects.s3 import S3Access, S3Store
from tests.conftest import Minio


def test_probe_passes_and_leaves_no_object(store: ObjectStore) -> None:
    probe(store)
    assert store.list("") == []


def test_put_get_stat_range_delete(store: ObjectStore) -> None:
    store.put("a/b.txt", b"0123456789")
    assert store.get("a/b.txt") == b"0123456789"
    assert store.get_range("a/b.txt", 3, 4) == b"3456"
    assert store.get_range("a/b.txt", 8, 10) == b"89"
    assert store.get_range("a/b.txt", 20, 1) == b""
    info = store.stat("a/b.txt")
    assert (info.name, info.size) == ("a/b.txt", 10)
    assert abs((store.now() - info.modified).total_seconds()) < 60
    store.put("a/b.txt", b"")
    assert store.get("a/b.txt") == b""
    store.delete("a/b.txt")
    store.delete("a/b.txt")
    for ask in (store.get, store.stat):
        with pytest.raises(ObjectMissing):
            ask("a/b.txt")


def test_concurrent_create_if_absent_has_one_winner(store: ObjectStore) -> None:
    def create(number: int) -> bool:
        try:
            store.put_if_absent(f"race/{number % 5}", b"%d" % number)
        except ObjectExists:
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        won = [number for number, first in enumerate(threads.map(create, range(80))) if first]
    assert sorted(number % 5 for number in won) == [0, 1, 2, 3, 4]
    for number in won:
        assert store.get(f"race/{number % 5}") == b"%d" % number


def test_lists_are_ordered_and_continue_after_a_name(store: ObjectStore) -> None:
    others = ["log/10/x", "log/1-a", "log/1.a/z", "m", "log/1a"]
    names = sorted([f"log/1/{number:020d}" for number in range(7)] + others)
    for name in reversed(names):
        store.put(name, b"x")
    found: list[ObjectInfo] = []
    while page := store.list("log/1", start_after=found[-1].name if found else "", limit=3):
        assert len(page) <= 3
        found += page
    assert [info.name for info in found] == [name for name in names if name.startswith("log/1")]
    after = store.list("log/1/", start_after=f"log/1/{4:020d}")
    assert [info.name for info in after] == [f"log/1/{5:020d}", f"log/1/{6:020d}"]
    assert store.list("nothing/") == []


@pytest.mark.parametrize("name", ["", "/a", "a//b", "a/", ".tmp/x", "a/../b", "a b", "ä", "x" * 901, "-a", "a\n"])
def test_names_that_are_not_portable_are_refused(store: ObjectStore, name: str) -> None:
    with pytest.raises(InvalidName):
        store.put(name, b"")
    with pytest.raises(InvalidName):
        store.get(name)


def test_damaged_blob_is_detected_when_read(store: ObjectStore) -> None:
    blobs = Blobs(store)
    first, second = blobs.put("shop", b"same"), blobs.put("shop", b"same")
    assert first.sha256 == second.sha256
    assert first.name != second.name
    assert blobs.get(first.name) == b"same"
    store.put(first.name, b"other")
    with pytest.raises(Damaged):
        blobs.get(first.name)
    with pytest.raises(InvalidName):
        blobs.get("store.json")


class _IgnoresCondition(DiskStore):
    """Overwrites existing objects."""

    def put_if_absent(self, name: str, data: bytes) -> None:
        self.put(name, data)


class _Racing(DiskStore):
    """Checks and writes in two steps: all writers check before one writes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._checked = threading.Barrier(8)

    def put_if_absent(self, name: str, data: bytes) -> None:
        if "/race" not in name:
            return super().put_if_absent(name, data)
        self._checked.wait()
        return self.put(name, data)


class _Lagging(DiskStore):
    """Does not list the last object yet."""

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Sequence[ObjectInfo]:
        return super().list(prefix, start_after=start_after, limit=limit)[:-1]


class _IgnoresDelete(DiskStore):
    """Keeps deleted objects."""

    def delete(self, name: str) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (_IgnoresCondition, "'create if absent': an existing object was overwritten: the store ignores If-None-Match"),
        (_Racing, "'concurrent create if absent': 8 of 8 writers"),
        (_Lagging, "'list after write': 3 objects were written, 2 are listed"),
        (_IgnoresDelete, "'get after delete': a get of an object that does not exist succeeded"),
    ],
)
def test_probe_names_the_guarantee_that_a_store_lacks(kind: type[DiskStore], check: str, tmp_path: Path) -> None:
    with pytest.raises(StoreUnfit, match=check):
        probe(kind(tmp_path))


def test_minio_over_tls_needs_its_certificate_authority(minio_binary: Path, tmp_path: Path) -> None:
    """The authority comes from the settings of the servers."""
    certificates = tmp_path / "certificates"
    _certify(certificates)
    server = Minio(minio_binary, tmp_path, certificates)
    try:
        server.start()
        settings = S3Settings(
            endpoint=server.access.endpoint,
            access_key=server.access.access_key,
            secret_key=SecretStr(str(server.access.secret_key)),
            ca_file=certificates / "public.crt",
            read_timeout=timedelta(seconds=7),
        )
        access = settings.access()
        assert access is not None
        assert (access.secure, access.connect_timeout_s, access.read_timeout_s) == (True, 5, 7)
        store = S3Store(access, server.bucket)
        probe(store)
        store.close()
        untrusted = S3Store(replace(access, ca_file=None), server.bucket)
        with pytest.raises(StoreUnavailable, match="certificate"):
            untrusted.put_if_absent("a", b"")
        untrusted.close()
    finally:
        server.kill()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nServer: MinIO\r\n",  # within its headers, which the end of the connection ends too
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 2",
    ],
)
def test_truncated_response_is_store_unavailable(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        access = S3Access(endpoint=f"127.0.0.1:{listener.getsockname()[1]}", secure=False)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        store = S3Store(access, "bucket")
        with pytest.raises(StoreUnavailable):
            store.get("log/1/2")
        store.close()


def _certify(folder: Path) -> None:
    """Writes a self-signed certificate for 127.0.0.1."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "minio")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "public.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "private.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))


def test_disk_store_leaves_no_partial_file(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    (tmp_path / ".tmp" / "123-killed").write_bytes(b"half")
    store.put_if_absent("a/b", b"whole")
    with pytest.raises(StoreRefused):
        store.put("a/b/c", b"")
    with pytest.raises(StoreRefused):
        store.put_if_absent("a", b"")
    assert [info.name for info in store.list("")] == ["a/b"]
    assert [path.name for path in (tmp_path / ".tmp").iterdir()] == ["123-killed"]


def test_network_filesystem_is_refused(tmp_path: Path) -> None:
    line = f"36 35 98:0 / {tmp_path} rw,noatime shared:1 - nfs4 server:/export rw\n"
    with pytest.raises(StoreUnfit, match="nfs4"):
        refuse_network_filesystem(tmp_path / "data", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + line)
    refuse_network_filesystem(tmp_path, "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")


def test_s3_errors_are_refused_or_unavailable(minio: Minio) -> None:
    access = minio.access
    wrong = S3Access(endpoint=access.endpoint, access_key=access.access_key, secret_key="wrong" * 8, secure=False)
    refusals: list[tuple[S3Access, str, type[StorageError]]] = [
        (wrong, minio.bucket, StoreRefused),
        (access, "no-such-bucket", StoreRefused),
        (S3Access(endpoint="127.0.0.1:1", secure=False), minio.bucket, StoreUnavailable),
    ]
    for reach, bucket, expected in refusals:
        store = S3Store(reach, bucket)
        with pytest.raises(expected):
            store.put_if_absent("a", b"")
        store.close()


@pytest.mark.parametrize("address", ["", "ftp://x", "s3://", "s3://bucket", "file://host/x", "s3://key@bucket"])
def test_invalid_addresses_are_refused(address: str) -> None:
    with pytest.raises(BadAddress):
        open_store(address)

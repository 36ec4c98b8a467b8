"""Objects as files on a local disk, for the processes of one host.

A file is written under a temporary name, synced, and given its name by link(2), which fails when the name is taken:
create-if-absent as in S3. A partial file is never visible under an object's name, whenever a process is killed.
"""

import errno
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from storage.errors import ObjectExists, ObjectMissing, StoreRefused, StoreUnavailable, StoreUnfit
from storage.objects.base import ObjectInfo, check_name, check_prefix

# An object name never begins with a dot, so no object can be in this folder.
_TEMPORARY = ".tmp"
_TEMPORARY_MAX_AGE_S = 3600.0

# On these, two hosts may disagree on whether link(2) failed, or see a file late. 9p is not listed: virtual machines and
# sandboxes use it to mount their own host's disk.
_NETWORK_FILESYSTEM = re.compile(
    "afs|beegfs|ceph|cifs|coda|davfs|glusterfs|gpfs|lustre|ncpfs|nfs4?|ocfs2|orangefs|smb3|smbfs|"
    r"fuse\.(ceph|cephfs|gcsfuse|glusterfs|goofys|juicefs|mount-s3|rclone|s3fs|sshfs)"
)

_DEFINITE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.EMLINK,
}


class DiskStore:
    """An ObjectStore in a folder. Several processes of one host may use the same folder."""

    def __init__(self, root: Path) -> None:
        """Opens `root`, and creates it if it is missing. Raises StoreUnfit on a network filesystem, StoreRefused if it
        is not writable."""
        self._root = root.absolute()
        self._temporary = self._root / _TEMPORARY
        with _mapped_write_errors(str(self._root)):
            self._make_folder(self._temporary)
        refuse_network_filesystem(self._root)
        self._remove_old_temporaries()

    @property
    def root(self) -> Path:
        """The store's folder. Files and folders in it that begin with a dot are not objects."""
        return self._root

    @property
    def description(self) -> str:
        return f"file://{self._root}"

    def put_if_absent(self, name: str, data: bytes) -> None:
        target = self._path(name)
        with _mapped_write_errors(name), self._written(target, data) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                if target.is_dir():
                    raise StoreRefused(f"{name!r} is a prefix of another object's name", object=name) from None
                # The winner may not have synced the folder yet. Its object must be durable before this is reported.
                _sync_folder(target.parent)
                raise ObjectExists(name) from None
            _sync_folder(target.parent)

    def put(self, name: str, data: bytes) -> None:
        target = self._path(name)
        with _mapped_write_errors(name), self._written(target, data) as temporary:
            temporary.replace(target)
            _sync_folder(target.parent)

    def get(self, name: str) -> bytes:
        with _mapped_errors(name):
            return self._path(name).read_bytes()

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        with _mapped_errors(name), self._path(name).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def stat(self, name: str) -> ObjectInfo:
        path = self._path(name)
        with _mapped_errors(name):
            if path.is_dir():
                raise ObjectMissing(name)
            return _info(name, path.stat())

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Sequence[ObjectInfo]:
        check_prefix(prefix)
        found: list[ObjectInfo] = []
        with _mapped_errors(prefix):
            for info in _walk(self._root, "", prefix, start_after):
                if len(found) >= limit:
                    break
                found.append(info)
        return found

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _mapped_errors(name), suppress(FileNotFoundError, NotADirectoryError):
            if path.is_dir():
                return
            path.unlink()
            _sync_folder(path.parent)

    def now(self) -> datetime:
        return datetime.now(UTC)

    def close(self) -> None:
        pass

    def _path(self, name: str) -> Path:
        return self._root / check_name(name)

    @contextmanager
    def _written(self, target: Path, data: bytes) -> Iterator[Path]:
        """A synced temporary file with `data`, and the folder of `target`. The file is removed afterwards."""
        if not target.parent.is_dir():
            self._make_folder(target.parent)
        temporary = self._temporary / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()

    def _make_folder(self, folder: Path) -> None:
        """mkdir -p, each new name synced into its parent."""
        missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            _sync_folder(path.parent)

    def _remove_old_temporaries(self) -> None:
        """Remove temporary files of killed processes. A writer that was suspended for longer than the maximum age finds
        its file missing and fails; nothing is damaged."""
        oldest = time.time() - _TEMPORARY_MAX_AGE_S
        with _mapped_errors(_TEMPORARY):
            for path in self._temporary.iterdir():
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < oldest:
                        path.unlink()


def refuse_network_filesystem(path: Path, mountinfo: str | None = None) -> None:
    """Raises StoreUnfit when `path` lies on a filesystem that several hosts can share.

    `mountinfo` is the text of /proc/self/mountinfo (proc(5)). On a system without this file nothing is refused.
    """
    if mountinfo is None:
        try:
            mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return
    resolved = path.resolve()
    kind, depth = "", -1
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        if not separator:
            continue
        mounted = Path(before.split()[4].encode("utf-8", "surrogateescape").decode("unicode_escape", "replace"))
        # Of several mounts on one mount point, the last one is on top.
        if resolved.is_relative_to(mounted) and len(mounted.parts) >= depth:
            kind, depth = after.split()[0], len(mounted.parts)
    if _NETWORK_FILESYSTEM.fullmatch(kind):
        raise StoreUnfit("local filesystem", f"{path} lies on {kind}; use a local disk, or S3 for several hosts")


def _walk(folder: Path, name: str, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
    """Objects below `folder`, sorted by name. `name` is the folder's name in the store: empty, or ending in a slash."""
    try:
        with os.scandir(folder) as scan:
            # A folder sorts by its name with the slash, because its objects' names continue with a slash.
            items = sorted((item.name + ("/" if item.is_dir() else ""), item) for item in scan if item.name[0] != ".")
    except FileNotFoundError:
        return
    for segment, item in items:
        full = name + segment
        if segment.endswith("/"):
            common = min(len(full), len(prefix))
            # All names below start with `full`. They sort after `start_after` if `full` does; if `start_after` itself
            # starts with `full`, some of them may. Otherwise the folder can be skipped.
            if full[:common] == prefix[:common] and (full > start_after or start_after.startswith(full)):
                yield from _walk(Path(item.path), full, prefix, start_after)
        elif full.startswith(prefix) and full > start_after:
            with suppress(FileNotFoundError):
                yield _info(full, item.stat())


def _info(name: str, stat: os.stat_result) -> ObjectInfo:
    return ObjectInfo(name=name, size=stat.st_size, modified=datetime.fromtimestamp(stat.st_mtime, UTC))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _mapped_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ObjectMissing(name) from None
    except OSError as error:
        raise _mapped(name, error) from error


@contextmanager
def _mapped_write_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (NotADirectoryError, IsADirectoryError, FileExistsError):
        why = f"{name!r} is a folder of another object's name, or the reverse; a disk can hold only one of them"
        raise StoreRefused(why, object=name) from None
    except OSError as error:
        raise _mapped(name, error) from error


def _mapped(name: str, error: OSError) -> StoreRefused | StoreUnavailable:
    why = f"{name!r}: {error.strerror or error}"
    if error.errno in _DEFINITE:
        return StoreRefused(why, object=name)
    return StoreUnavailable(why, object=name)

"""Checks that a store gives the guarantees that the commit log needs. Servers run it at start, before they serve."""

import secrets
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from storage.errors import ObjectExists, ObjectMissing, StoreUnfit
from storage.objects.base import ObjectStore

_ROUNDS = 2


def probe(store: ObjectStore, *, contenders: int = 8) -> None:
    """Try create-if-absent (alone, and by `contenders` threads at once), get, ranges, list after write, and delete.

    Writes a few objects under `probe/` and removes them. Raises StoreUnfit, which names the first check that failed;
    StoreUnavailable and StoreRefused pass through. A passed probe is not a proof: it cannot detect rare races.
    """
    folder = f"probe/{secrets.token_hex(8)}"
    written: list[str] = []
    try:
        _check_condition(store, f"{folder}/a", written)
        for number in range(_ROUNDS):
            _check_race(store, f"{folder}/race-{number}", contenders, written)
        _check_list(store, folder, written)
        _check_delete(store, written)
    finally:
        for name in written:
            store.delete(name)


def _check_condition(store: ObjectStore, name: str, written: list[str]) -> None:
    _check_missing(store, name, "get before put")
    written.append(name)
    store.put_if_absent(name, b"first")
    if _get(store, name, "get after put") != b"first":
        raise StoreUnfit("get after put", "the bytes differ from those written")
    try:
        store.put_if_absent(name, b"second")
    except ObjectExists:
        pass
    else:
        raise StoreUnfit("create if absent", "an existing object was overwritten: the store ignores If-None-Match")
    if _get(store, name, "create if absent") != b"first":
        raise StoreUnfit("create if absent", "a refused write changed the object")
    if store.get_range(name, 1, 3) != b"irs":
        raise StoreUnfit("get range", "the bytes differ from those written")


def _check_race(store: ObjectStore, name: str, contenders: int, written: list[str]) -> None:
    written.append(name)
    together = Barrier(contenders)

    def contend(number: int) -> bool:
        together.wait()
        try:
            store.put_if_absent(name, b"%d" % number)
        except ObjectExists:
            return False
        return True

    with ThreadPoolExecutor(contenders) as threads:
        won = [number for number, first in enumerate(threads.map(contend, range(contenders))) if first]
    if len(won) != 1:
        raise StoreUnfit(
            "concurrent create if absent", f"{len(won)} of {contenders} writers succeeded; exactly one must"
        )
    if _get(store, name, "concurrent create if absent") != b"%d" % won[0]:
        raise StoreUnfit("concurrent create if absent", "the object has the bytes of a writer that was refused")


def _check_list(store: ObjectStore, folder: str, written: list[str]) -> None:
    listed = [info.name for info in store.list(f"{folder}/")]
    if listed != sorted(written):
        raise StoreUnfit("list after write", f"{len(written)} objects were written, {len(listed)} are listed")
    after = [info.name for info in store.list(f"{folder}/", start_after=listed[0], limit=1)]
    if after != listed[1:2]:
        raise StoreUnfit("list from a name", "the list does not continue after the given name")


def _check_delete(store: ObjectStore, written: list[str]) -> None:
    while written:
        name = written[-1]
        store.delete(name)
        _check_missing(store, name, "get after delete")
        written.pop()


def _check_missing(store: ObjectStore, name: str, check: str) -> None:
    try:
        store.get(name)
    except ObjectMissing:
        return
    raise StoreUnfit(check, "a get of an object that does not exist succeeded")


def _get(store: ObjectStore, name: str, check: str) -> bytes:
    try:
        return store.get(name)
    except ObjectMissing as error:
        raise StoreUnfit(check, "an object that was written cannot be found") from error

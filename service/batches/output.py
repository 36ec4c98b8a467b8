"""A batch's objects under `batches/<tenant>/<batch>/`: pictures, shards, manifests. They are its progress.

    pictures/<index>.<ending>    each picture as soon as it is drawn
    shards/<shard>.tar           layout WEBDATASET: the shard's pictures, which are then deleted from pictures/
    parts/<shard>.jsonl          the shard is complete; these lines are its part of the manifest
    manifest.jsonl               layout WEBDATASET, at the end: the concatenated parts, which are then deleted
    metadata.jsonl               the same for layout FOLDER, under the name that `datasets` expects
    claims/                      which server draws a shard (`Claims`); deleted at the end

Every object is created only if it is absent. Servers that share a store therefore do each other no harm, even if one of
them was suspended for a while, and after a kill only the missing objects are drawn.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Sequence
from contextlib import suppress

from pseudoword.names import BatchName

from service.batches.plan import Item, Plan
from service.request.image_file import from_file, to_json
from storage.errors import ObjectExists, ObjectMissing
from storage.objects.base import ObjectStore, list_all

_PART = re.compile(r"parts/([0-9]{6})\.jsonl")


class Output:
    """The objects of one batch. All methods block, and raise the store's errors."""

    def __init__(self, store: ObjectStore, batch: BatchName, plan: Plan, *, ending: str, webdataset: bool) -> None:
        """`ending` is the file ending of pictures, without a dot."""
        self._store = store
        self._folder = folder(batch)
        self._plan = plan
        self._ending = ending
        self._webdataset = webdataset

    def missing(self, shard: int) -> Sequence[Item] | None:
        """The missing pictures of a shard; None if the shard is complete."""
        present = self._present(shard)
        # Checked after the listing: pictures are deleted only once their shard is complete.
        if self._is_complete(shard):
            return None
        return [item for item in self._plan.items(shard) if self._picture(item) not in present]

    def put(self, item: Item, data: bytes) -> None:
        """Stores a picture, unless it is stored already."""
        with suppress(ObjectExists):
            self._store.put_if_absent(self._picture(item), data)

    def finish(self, shard: int) -> None:
        """Completes a shard from its stored pictures, then tidies it. A shard that is complete already stays as it is,
        and a shard that lacks a picture is left incomplete for a later attempt."""
        if not self._is_complete(shard):
            with suppress(ObjectMissing):  # another server has completed the shard meanwhile, and deleted its pictures
                self._pack(shard)
        self.tidy(shard)

    def tidy(self, shard: int) -> None:
        """Deletes a complete shard's pictures (layout WEBDATASET), and its part once the batch has a manifest. Another
        server may have completed the shard while this one drew it."""
        if self._webdataset and self._is_complete(shard):
            for name in self._present(shard):
                self._store.delete(name)
        if self._is_closed():
            self._store.delete(self._part(shard))

    def close(self) -> None:
        """Writes the manifest of a batch whose shards are all complete, and deletes the intermediate objects."""
        if not self._is_closed():
            try:
                parts = b"".join(self._store.get(self._part(shard)) for shard in range(self._plan.shards))
                with suppress(ObjectExists):
                    self._store.put_if_absent(self.manifest, parts)
            except ObjectMissing:
                if not self._is_closed():  # otherwise another server has closed the batch meanwhile
                    raise
        for kind in ("parts", "claims", "pictures") if self._webdataset else ("parts", "claims"):
            for info in list_all(self._store, f"{self._folder}/{kind}/"):
                self._store.delete(info.name)

    @property
    def manifest(self) -> str:
        """The manifest's name in the store."""
        return f"{self._folder}/{manifest_name(webdataset=self._webdataset)}"

    def _pack(self, shard: int) -> None:
        lines, files = [], []
        for item in self._plan.items(shard):
            data = self._store.get(self._picture(item))
            files.append((item, data))
            lines.append(self._line(shard, item, data))
        if self._webdataset:
            with suppress(ObjectExists):
                self._store.put_if_absent(f"{self._folder}/{_shard(shard)}", self._tar(files))
        with suppress(ObjectExists):
            self._store.put_if_absent(self._part(shard), "".join(lines).encode())

    def _present(self, shard: int) -> set[str]:
        """Names of a shard's pictures that the store has."""
        names = [self._picture(item) for item in self._plan.items(shard)]
        before = names[0].removesuffix(f".{self._ending}")
        listed = self._store.list(f"{self._folder}/pictures/", start_after=before, limit=len(names))
        return {info.name for info in listed}.intersection(names)

    def _is_complete(self, shard: int) -> bool:
        return bool(self._store.list(self._part(shard), limit=1)) or self._is_closed()

    def _is_closed(self) -> bool:
        return bool(self._store.list(self.manifest, limit=1))

    def _picture(self, item: Item) -> str:
        return f"{self._folder}/pictures/{item.key}.{self._ending}"

    def _part(self, shard: int) -> str:
        return f"{self._folder}/parts/{shard:06}.jsonl"

    def _line(self, shard: int, item: Item, data: bytes) -> str:
        file = f"{item.key}.{self._ending}"
        where = {"shard": _shard(shard), "file_name": file} if self._webdataset else {"file_name": f"pictures/{file}"}
        line = {
            **where,
            "text": item.prompt,
            "seed": item.seed,
            "size_bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "record": json.loads(to_json(from_file(data))),
        }
        return json.dumps(line, ensure_ascii=False) + "\n"

    def _tar(self, files: Sequence[tuple[Item, bytes]]) -> bytes:
        """A shard in WebDataset's layout: picture, text and record under one key. Equal pictures give equal tars."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for item, data in files:
                for ending, content in (
                    (self._ending, data),
                    ("json", to_json(from_file(data)).encode()),
                    ("txt", item.prompt.encode()),
                ):
                    member = tarfile.TarInfo(f"{item.key}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return buffer.getvalue()


def finished(store: ObjectStore, batch: BatchName, shards: int) -> set[int]:
    """The complete shards of a batch with `shards` shards. Blocks."""
    place = folder(batch)
    if store.list(f"{place}/m", limit=1):  # the manifest: written after all parts, which are then deleted
        return set(range(shards))
    names = (info.name.removeprefix(f"{place}/") for info in list_all(store, f"{place}/parts/"))
    return {int(part[1]) for name in names if (part := _PART.fullmatch(name))}


def folder(batch: BatchName) -> str:
    """The prefix of a batch's objects, without a trailing slash."""
    return f"batches/{batch.tenant}/{batch.batch}"


def manifest_name(*, webdataset: bool) -> str:
    return "manifest.jsonl" if webdataset else "metadata.jsonl"


def _shard(shard: int) -> str:
    return f"shards/{shard:06}.tar"

"""A picture from Generation."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pseudoword.generation.v1 import generation_pb2


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A finished picture: the file's bytes, and its record, which is also inside the file."""

    index: int
    data: bytes
    info: generation_pb2.PictureInfo

    def save(self, path: Path) -> None:
        path.write_bytes(self.data)


def pictures(events: Iterable[generation_pb2.GenerateResponse]) -> list[Picture]:
    """Assemble a request's pictures from their chunks, in order of index."""
    data: dict[int, bytearray] = {}
    finished: dict[int, Picture] = {}
    for event in events:
        if event.WhichOneof("event") != "chunk":
            continue
        chunk = event.chunk
        data.setdefault(chunk.index, bytearray()).extend(chunk.data)
        if chunk.HasField("info"):
            finished[chunk.index] = Picture(index=chunk.index, data=bytes(data.pop(chunk.index)), info=chunk.info)
    return [finished[index] for index in sorted(finished)]

"""Large sets of drawings, painted once into a folder by parallel processes."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from miniature.captions import Caption, caption
from miniature.paint import SIZE, paint
from miniature.world import Drawing, random_drawing

CHUNK = 1000
TRAINING, HELD_OUT = 0, 1


@dataclass(frozen=True)
class Drawings:
    """The first `count` random drawings of a split (TRAINING or HELD_OUT); `count` is a multiple of CHUNK.

    Drawing i depends on the seed (split, i) only: a larger set begins with the same drawings, and only pixels are
    stored.
    """

    folder: Path
    count: int
    split: int = TRAINING

    def drawing(self, number: int) -> Drawing:
        """The attributes of drawing `number`."""
        return random_drawing(self._rng(number))

    def captions(self, number: int, many: int) -> list[Caption]:
        """`many` sentences about drawing `number`."""
        drawing = self.drawing(number)
        rng = np.random.default_rng((self.split, number, 2))
        return [caption(drawing, rng) for _ in range(many)]

    def paint(self) -> Iterator[int]:
        """Paints the missing drawings, one file for each chunk. Yields the number of painted drawings before the first
        and after each chunk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        chunks = range(self.count // CHUNK)
        missing = [chunk for chunk in chunks if not self._file(chunk).exists()]
        done = len(chunks) - len(missing)
        yield done * CHUNK
        if not missing:
            return
        with ProcessPoolExecutor() as pool:
            for _ in pool.map(self._paint_chunk, missing):
                done += 1
                yield done * CHUNK

    @cached_property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """All drawings, [count, SIZE, SIZE, 3]. Raises FileNotFoundError if some are not painted."""
        pixels = np.empty((self.count, SIZE, SIZE, 3), np.uint8)
        for chunk in range(self.count // CHUNK):
            pixels[chunk * CHUNK : (chunk + 1) * CHUNK] = np.load(self._file(chunk))
        return pixels

    def _paint_chunk(self, chunk: int) -> None:
        painted = np.empty((CHUNK, SIZE, SIZE, 3), np.uint8)
        for place in range(CHUNK):
            number = chunk * CHUNK + place
            painted[place] = np.asarray(paint(self.drawing(number), np.random.default_rng((self.split, number, 1))))
        file = self._file(chunk)
        part = file.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as stream:
            np.save(stream, painted)
        part.replace(file)  # atomic

    def _rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng((self.split, number, 0))

    def _file(self, chunk: int) -> Path:
        return self.folder / f"{('training', 'held-out')[self.split]}-{chunk:04}.npy"

"""Contact sheets: rows of pictures with a caption under each."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_MARGIN = 12
_CAPTION_LINES = 2
_FONT_PX = 14
_INK = (40, 40, 40)
_PAPER = (250, 250, 248)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A picture and the text under it."""

    image: Image.Image
    caption: str = ""


def contact_sheet(rows: Sequence[Sequence[Tile]], *, tile_px: int = 192, title: str = "") -> Image.Image:
    """Draw `rows` below each other, with each picture scaled into a square of `tile_px` pixels.

    Small pictures are enlarged without smoothing, so that the sheet shows the file's pixels.
    """
    font = ImageFont.load_default(_FONT_PX)
    caption_px = _CAPTION_LINES * (_FONT_PX + 4)
    cell_width, cell_height = tile_px + _MARGIN, tile_px + caption_px + _MARGIN
    title_px = 2 * _FONT_PX + _MARGIN if title else 0
    widest = max(len(row) for row in rows)
    sheet = Image.new("RGB", (widest * cell_width + _MARGIN, len(rows) * cell_height + _MARGIN + title_px), _PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((_MARGIN, _MARGIN), title, fill=_INK, font=ImageFont.load_default(_FONT_PX + 4))
    for row_index, row in enumerate(rows):
        # A row shorter than the others is centred.
        left = _MARGIN + (widest - len(row)) * cell_width // 2
        top = _MARGIN + title_px + row_index * cell_height
        for column, tile in enumerate(row):
            _paste(sheet, tile.image, left + column * cell_width, top, tile_px)
            letters = int(tile_px / (_FONT_PX * 0.52))
            lines = textwrap.wrap(tile.caption, letters, max_lines=_CAPTION_LINES, placeholder="...")
            pen.multiline_text((left + column * cell_width, top + tile_px + 4), "\n".join(lines), fill=_INK, font=font)
    return sheet


def _paste(sheet: Image.Image, image: Image.Image, left: int, top: int, tile_px: int) -> None:
    scale = tile_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    fitted = image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    sheet.paste(fitted, (left + (tile_px - size[0]) // 2, top + (tile_px - size[1]) // 2))

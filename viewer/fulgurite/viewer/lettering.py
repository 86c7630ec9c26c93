"""Paints words with the fonts of this package: crisp, and the same on every machine.

Pictures are bytes RGBA with *premultiplied* alpha, shape (height, width, 4), the first row on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fulgurite.viewer.layout import Label

    Bytes = NDArray[np.uint8]

Weight = Literal["regular", "bold"]
Color = tuple[int, int, int]

_FILES = {"regular": "Inter-Regular.otf", "bold": "Inter-SemiBold.otf"}
LABEL_COLORS: dict[str, Color] = {
    "layer": (140, 158, 214),
    "heads": (226, 140, 112),
    "ffn": (222, 178, 92),
    "residual": (124, 148, 238),
    "kv": (92, 186, 206),
}
NAME_PIXELS, NUMBER_PIXELS = 13.0, 12.5


@lru_cache(maxsize=64)
def font(pixels: int, weight: Weight = "regular") -> Any:
    """A face of this package.

    Raises
    ------
    RuntimeError
        Where Pillow is missing.
    """
    try:
        from PIL import ImageFont, features
    except ImportError as error:
        raise RuntimeError('words are painted with Pillow: pip install "fulgurite[viewer]"') from error
    shaping = ImageFont.Layout.RAQM if features.check("raqm") else ImageFont.Layout.BASIC
    with as_file(files("fulgurite.viewer.fonts") / _FILES[weight]) as path:
        return ImageFont.truetype(str(path), pixels, layout_engine=shaping)


@lru_cache(maxsize=4096)
def word(text: str, pixels: int, weight: Weight = "regular") -> Bytes:
    """The coverage of a line of text: bytes (height, width), the baseline at one row for one size."""
    from PIL import Image, ImageDraw, features

    face = font(pixels, weight)
    digits = ["tnum"] if features.check("raqm") else None  # figures of one width: nothing jumps
    width = max(1, int(np.ceil(face.getlength(text, features=digits))))
    ascent, descent = face.getmetrics()
    image = Image.new("L", (width, ascent + descent), 0)
    ImageDraw.Draw(image).text((0, 0), text, fill=255, font=face, features=digits)
    return np.asarray(image)


@lru_cache(maxsize=512)
def inked(text: str, pixels: int, weight: Weight, color: Color) -> Bytes:
    """A line of text in a colour, RGBA: most words are painted many times a second, on nothing."""
    return _cover(np.zeros(4, np.uint8), word(text, pixels, weight), color)


def _cover(under: Bytes, mask: Bytes, color: Color) -> Bytes:
    """A colour over `under` where `mask` covers it."""
    cover = mask[..., None].astype(np.uint16)
    ink = np.array([*color, 255], np.uint16)
    return ((ink * cover + under.astype(np.uint16) * (255 - cover)) // 255).astype(np.uint8)


class Canvas:
    """A transparent sheet to write on.

    Parameters
    ----------
    width, height : int
        In pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self.pixels: Bytes = np.zeros((max(1, height), max(1, width), 4), np.uint8)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        pixels: float,
        color: Color,
        *,
        weight: Weight = "regular",
        align: int = -1,
    ) -> float:
        """Write one line with its top at `y`; `align` -1 from `x` on, 0 around it, 1 up to it; its width."""
        if not text:
            return 0.0
        size = max(6, round(pixels))
        mask = word(text, size, weight)
        height, width = mask.shape
        left, top = round(x - width * (align + 1) / 2), round(y)
        area = self._area(left, top, width, height)
        if area.shape[:2] == mask.shape and not area.any():
            area[:] = inked(text, size, weight, color)
        else:
            self.stamp(left, top, mask, color)
        return float(width)

    def stamp(self, left: int, top: int, mask: Bytes, color: Color) -> None:
        """Lay a colour over the sheet where `mask` covers it."""
        area = self._area(left, top, mask.shape[1], mask.shape[0])
        below, right = max(0, -top), max(0, -left)
        area[:] = _cover(area, mask[below : below + area.shape[0], right : right + area.shape[1]], color)

    def _area(self, left: int, top: int, width: int, height: int) -> Bytes:
        """The part of a rectangle that lies on the sheet."""
        return self.pixels[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)]

    def box(
        self, x: float, y: float, width: float, height: float, color: Color, opacity: float = 1.0
    ) -> None:
        """A filled rectangle."""
        area = self._area(round(x), round(y), max(1, round(width)), max(1, round(height)))
        cover = round(255 * opacity)
        if cover < 255 and area.any():
            area[:] = _cover(area, np.full(area.shape[:2], cover, np.uint8), color)
        else:
            area[:] = [part * cover // 255 for part in (*color, 255)]

    def picture(self, x: float, y: float, rgb: Bytes) -> None:
        """An opaque picture (height, width, 3)."""
        left, top = round(x), round(y)
        area = self.pixels[top : top + rgb.shape[0], left : left + rgb.shape[1]]
        area[..., :3] = rgb[: area.shape[0], : area.shape[1]]
        area[..., 3] = 255


def width_of(text: str, pixels: float, weight: Weight = "regular") -> float:
    """Width of a text in pixels."""
    return float(word(text, max(6, round(pixels)), weight).shape[1]) if text else 0.0


def fitted(text: str, room: float, pixels: float, weight: Weight = "regular") -> str:
    """`text`, cut with an ellipsis where it needs more than `room` pixels."""
    if width_of(text, pixels, weight) <= room:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if width_of(text[:middle] + "…", pixels, weight) <= room else (low, middle - 1)
        )
    return text[:low] + "…" if low else ""


@dataclass(frozen=True, slots=True)
class Atlas:
    """Words side by side in one picture.

    Attributes
    ----------
    pixels : ndarray of uint8, shape (height, width, 4)
        The first row at the bottom, as textures have it.
    offsets : ndarray of float32, shape (n, 4, 2)
        Corners of each word around its anchor, in pixels, y up.
    places : ndarray of float32, shape (n, 4, 2)
        Where those corners lie in `pixels`.
    spans : ndarray of float32, shape (n, 4, 2)
        How far the word of each corner reaches to the left and right of its anchor, in pixels.
    """

    pixels: Bytes
    offsets: NDArray[np.float32]
    places: NDArray[np.float32]
    spans: NDArray[np.float32]


def paint_labels(labels: Sequence[Label], scale: float) -> Atlas:
    """The labels of a layout as an atlas; `scale` is 1 for a window of 720 lines."""
    size = {label.kind: (NUMBER_PIXELS if label.kind == "layer" else NAME_PIXELS) * scale for label in labels}
    masks = [word(label.text, max(8, round(size[label.kind]))) for label in labels]
    height, width = sum(mask.shape[0] + 1 for mask in masks), max(mask.shape[1] for mask in masks)
    canvas = Canvas(width, height)
    offsets, places, spans = [], [], []
    top = 0
    for label, mask in zip(labels, masks, strict=True):
        canvas.stamp(0, top, mask, LABEL_COLORS[label.kind])
        h, w = mask.shape
        left, low = round(-w * (1 - label.align) / 2) if label.align else -(w // 2), -(h // 2)
        offsets.append([(left, low), (left + w, low), (left + w, low + h), (left, low + h)])
        spans.append([(left, left + w)] * 4)
        bottom = height - top - h
        places.append([(0, bottom), (w, bottom), (w, bottom + h), (0, bottom + h)])
        top += h + 1
    return Atlas(
        np.ascontiguousarray(canvas.pixels[::-1]),
        np.array(offsets, np.float32),
        np.array(places, np.float32),
        np.array(spans, np.float32),
    )

"""Any picture as a square of RGB pixels, and the pools that yield such squares.

A picture that cannot be decoded is skipped with its reason when the pool is opened, and is an error when it could be
decoded then and cannot be now.
"""

from __future__ import annotations

import stat
import struct
import zlib
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from asgkit.pool.base import Pool, PoolError, PoolImage

SMALL_SIDE = 64  # px; up to here images are cached, and resized by plain area means
# What Pillow raises on broken files, format by format; a file that raises one of these is skipped.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class PicturePool(Pool[PoolImage]):
    """Pictures as RGB squares of `size` px (None: native size), from wherever `decode` takes them.

    `cache` is how many decoded images stay in memory (default 4096 up to 64 px, else none).
    """

    kind = "pictures"
    noun = "image"

    def __init__(self, place: str | Path, *, size: int | None = None, cache: int | None = None,
                 **schedule: Any) -> None:
        self.size = size
        self.cache = (4096 if size is not None and size <= SMALL_SIDE else 0) if cache is None else cache
        self._decoded: dict[str, Image.Image] = {}
        super().__init__(place, **schedule)

    @abstractmethod
    def decode(self, place: int, name: str) -> Image.Image:
        """Candidate `place` as upright RGB; raises one of UNREADABLE if it is none."""

    def reason(self, name: str, error: Exception) -> str:
        """Say in a few words, without the path, why a picture was skipped."""
        if isinstance(error, Image.UnidentifiedImageError):
            return "not an image that can be identified"
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        own = isinstance(error, OSError) and error.errno is None and error.strerror  # raised by a pool, in its words
        return text if own else f"{type(error).__name__}: {text}"

    def trouble(self, place: int, name: str) -> str:
        """Why a candidate cannot be decoded; empty if it can."""
        try:
            self._read(place, name)
        except UNREADABLE as error:
            return self.reason(name, error)
        return ""

    def item(self, index: int) -> PoolImage:
        """Usable image `index` with its name."""
        return PoolImage(self.names[index], index, self.load(index))

    def load(self, index: int) -> Image.Image:
        """Return usable image `index`: upright RGB, `size` x `size` px if a size was set.

        Raises PoolError if it can no longer be read.
        """
        name = self.names[index]
        try:
            # A copy, so that drawing on the image leaves the cache as it is.
            return (self._decoded.get(name) or self._read(self.places[index], name)).copy()
        except UNREADABLE as error:
            reason = self.reason(name, error)
            raise PoolError(f"{name} could be read at the start, not now ({reason}): restore it") from error

    def _read(self, place: int, name: str) -> Image.Image:
        """Decode one picture; remember it while the cache has room."""
        image = self.decode(place, name)
        image = image if self.size is None else fit_square(image, self.size)
        if len(self._decoded) < self.cache:
            self._decoded[name] = image
        return image


def check_regular(path: Path) -> None:
    """Raise OSError unless `path` is a regular file: opening a pipe waits for its other end, it may be for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(None, "not a regular file")


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file; raises OSError for anything else."""
    check_regular(path)
    return path.read_bytes()


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the first frame of any Pillow image upright and as 8-bit RGB.

    EXIF rotation is applied. 16-bit grey is scaled by 1/257; float images, which have no fixed range, by
    their own minimum and maximum. Transparent pixels are laid over black: it is the ground of the shapes
    world, and merely dropping alpha would show the arbitrary colours that files hide below it.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_bytes(np.asarray(image), image.mode)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer).convert("RGB")
    return image.convert("RGB")


def _to_bytes(pixels: np.ndarray, mode: str) -> np.ndarray:
    """Scale 16-bit or float grey (H, W) to uint8."""
    pixels = pixels.astype(np.float64)
    if mode == "F":
        low, high = float(pixels.min()), float(pixels.max())
        if not np.isfinite([low, high]).all():
            raise ValueError("float image holds NaN or Inf")
        return np.round((pixels - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
    return np.round(pixels.clip(0, 65535) / 257).astype(np.uint8)


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Crop the centre square and resize it to `size` x `size` px; an image of that size is left untouched.

    Small sizes take area means (BOX), which keep flat colours flat; larger ones LANCZOS, which keeps edges.
    """
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    method = Image.Resampling.BOX if size <= SMALL_SIDE else Image.Resampling.LANCZOS
    # Cropped first: resize(box=...) lets the filter see pixels beyond the crop.
    return image.crop((left, top, left + side, top + side)).resize((size, size), method)

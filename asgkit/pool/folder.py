"""The unlabelled image pool: a folder of pictures, checked once, drawn in a fixed shuffled order.

Nothing but file names and pixels leaves this module: no label can reach the loop through it. Each epoch has
its own permutation, a pure function of (seed, epoch), so the pool's whole state is one integer, and an image
does not fall into the same phase of the training cycle in every epoch.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SMALL_SIDE = 64  # px; up to here images are cached, and resized by plain area means
log = logging.getLogger(__name__)
# What Pillow raises on broken files, format by format; a file that raises one of these is skipped.
_UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class PoolError(ValueError):
    """The pool folder is missing, empty or holds no usable image, or has changed under the run."""


@dataclass(frozen=True)
class PoolImage:
    """One drawn image: name relative to the pool folder, index in the sorted usable files, RGB pixels."""

    name: str
    index: int
    image: Image.Image


@dataclass(frozen=True)
class PoolPrompt:
    """One drawn prompt: its place in the pool, its index there, and the text."""

    name: str
    index: int
    text: str


@dataclass
class PoolReport:
    """What `ImagePool.check` found: image files, usable ones, and (name, reason) of each skipped one."""

    found: int = 0
    usable: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


class ImagePool:
    """All readable images below `folder`, as RGB squares of `size` px (None: native size), in fixed order.

    `limit` takes a fixed random subset, the same for every seed, so that runs with different seeds see the
    same pool. With `world_size` > 1 each rank gets other positions of one common schedule. `cache` is how
    many decoded images stay in memory (default 4096 up to 64 px, else none).

    Raises PoolError if nothing usable is there. The position is the only state.
    """

    kind = "pictures"  # what it yields

    def __init__(self, folder: str | Path, *, size: int | None = None, limit: int | None = None,
                 seed: int = 0, rank: int = 0, world_size: int = 1, cache: int | None = None) -> None:
        if not 0 <= rank < world_size:
            raise PoolError(f"rank must be in [0, world_size), got rank {rank} of {world_size}")
        if limit is not None and limit < 1:
            raise PoolError(f"limit must be at least 1 image or None, not {limit}")
        self.folder, self.size, self.limit, self.seed = Path(folder), size, limit, seed
        self.rank, self.world_size, self.position = rank, world_size, 0
        self.cache = (4096 if size is not None and size <= SMALL_SIDE else 0) if cache is None else cache
        self._decoded: dict[str, Image.Image] = {}
        self._order: tuple[int, np.ndarray] | None = None
        self.names: list[str] = []
        self.report = self.check()

    def __len__(self) -> int:
        return len(self.names)

    def check(self) -> PoolReport:
        """Decode every candidate file once; keep the readable ones, count and log the others with reasons.

        Raises PoolError naming the folder and the fix if it is missing, empty or wholly unreadable.
        """
        found = _scan(self.folder)
        report, names = PoolReport(found=len(found)), []
        for name in _with_progress(self._candidates(found), len(found)):
            if len(names) == self.limit:
                break
            try:
                self._read(name)
                names.append(name)
            except _UNREADABLE as error:
                shown = name.encode("utf-8", "backslashreplace").decode("utf-8")
                report.skipped.append((shown, _reason(self.folder / name, error)))
        self.names, report.usable = sorted(names), len(names)
        _log_skips(report)
        if not names:
            name, reason = report.skipped[0]
            raise PoolError(f"none of the {len(found)} image files in {self.folder} can be read (first: "
                            f"{name}, {reason}); open one in a viewer, and give a folder of readable images")
        return report

    def load(self, index: int) -> Image.Image:
        """Return image `index` of the sorted usable files: upright RGB, `size` x `size` px if a size was set.

        Raises PoolError if the file can no longer be read.
        """
        name = self.names[index]
        try:
            # A copy, so that drawing on the image leaves the cache as it is.
            return (self._decoded.get(name) or self._read(name)).copy()
        except _UNREADABLE as error:
            reason = _reason(self.folder / name, error)
            raise PoolError(f"{name} could be read at the start, not now ({reason}): restore it") from error

    def index_for(self, position: int) -> int:
        """Return the image index at a schedule position: `permutation(seed, epoch)[offset]`.

        `epoch, offset = divmod(position, len(pool))`; every image occurs once per epoch.
        """
        epoch, offset = divmod(position, len(self))
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self))
        return int(self._order[1][offset])

    def next_batch(self, n: int) -> list[PoolImage]:
        """Draw this rank's next `n` images; `position` moves on by `n * world_size` on every rank.

        Rank r takes the r-th block of `n` consecutive positions, so that two ranks with one block each see what one
        process with both would see. Ranks see different images as long as the batch of all stays within one epoch.
        """
        begin = self.position + self.rank * n
        self.position += n * self.world_size
        indices = [self.index_for(position) for position in range(begin, begin + n)]
        return [PoolImage(self.names[i], i, self.load(i)) for i in indices]

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and a digest of the usable names to notice a pool that has changed."""
        return {"position": self.position, "digest": self._digest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; raises PoolError if the usable files are not the same as then."""
        if state["digest"] != self._digest():
            raise PoolError(f"the usable images in {self.folder} are not those the run began with, so its "
                            "order cannot go on: restore the folder (and limit), or start a new run")
        self.position = int(state["position"])

    def _digest(self) -> str:
        return hashlib.sha256("\0".join(self.names).encode("utf-8")).hexdigest()

    def _candidates(self, found: list[str]) -> list[str]:
        """Order of checking: sorted, or shuffled for a subset (the first few might be of one kind)."""
        if self.limit is None:
            return found
        return [found[i] for i in np.random.default_rng(0).permutation(len(found))]

    def _read(self, name: str) -> Image.Image:
        """Decode one file; remember it while the cache has room."""
        name.encode("utf-8")  # a name that the log could not hold: UnicodeEncodeError, so skipped
        with (self.folder / name).open("rb") as stream, Image.open(stream) as opened:
            image = to_rgb(opened)
        image = image if self.size is None else fit_square(image, self.size)
        if len(self._decoded) < self.cache:
            self._decoded[name] = image
        return image


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


def _scan(folder: Path) -> list[str]:
    """List the image files below `folder` as sorted relative names; hidden files and folders are left out."""
    if not folder.is_dir():
        raise PoolError(f"no image folder at {folder}: create it or give the path of a folder of images")
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [(Path(root) / name).relative_to(folder).as_posix() for name in files
                  if not name.startswith(".") and name.lower().endswith(SUFFIXES)]
    if not found:
        raise PoolError(f"no image files in {folder}: expected {', '.join(SUFFIXES)}, there or in "
                        "sub-folders; put images in it or give another folder")
    return sorted(found)


def _with_progress(names: list[str], count: int) -> Iterable[str]:
    """Show a progress bar where the check takes long enough for a person to wonder."""
    if count <= 1000:
        return names
    return track(names, description="checking images", console=Console(stderr=True))


def _reason(path: Path, error: Exception) -> str:
    """Say in a few words, without the path, why a file was skipped."""
    if path.is_file() and path.stat().st_size == 0:
        return "empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that can be identified"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {text}"


def _log_skips(report: PoolReport) -> None:
    """Log each skipped file at INFO and their number, with the first few, as one warning."""
    for name, reason in report.skipped:
        log.info("skipped %s: %s", name, reason)
    if report.skipped:
        first = "; ".join(f"{name} ({reason})" for name, reason in report.skipped[:5])
        log.warning("%d of %d image files skipped: %s%s", len(report.skipped), report.found, first,
                    "; ..." if len(report.skipped) > 5 else "")

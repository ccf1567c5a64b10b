"""The pictures of a folder: every readable image file below it, named by its path from there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from asgkit.pool.base import PoolError, PoolImage
from asgkit.pool.pictures import PicturePool, check_regular, fit_square, to_rgb

# What the other rooms know of a pool of pictures, under one address.
__all__ = ["SUFFIXES", "ImagePool", "PoolError", "PoolImage", "fit_square", "image_files", "to_rgb"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class ImagePool(PicturePool):
    """All readable images below `folder`, as RGB squares of `size` px (None: native size), in the order of their names.

    `limit`, `seed`, `rank` and `world_size` are those of `Pool`, `cache` that of `PicturePool`.
    """

    unit = "image files"
    holder = "folder"

    def __init__(self, folder: str | Path, *, size: int | None = None, cache: int | None = None,
                 **schedule: Any) -> None:
        self.folder = Path(folder)
        super().__init__(self.folder, size=size, cache=cache, **schedule)

    def found(self) -> list[str]:
        """The image files below the folder as sorted relative names; hidden files and folders are left out."""
        if not self.folder.is_dir():
            raise PoolError(f"no image folder at {self.folder}: create it or give the path of a folder of images")
        found = sorted(image_files(self.folder))
        if not found:
            raise PoolError(f"no image files in {self.folder}: expected {', '.join(SUFFIXES)}, there or in "
                            "sub-folders; put images in it or give another folder")
        return found

    def nothing_usable(self, found: int, name: str, reason: str) -> str:
        """The error of a folder whose image files are all broken."""
        return (f"none of the {found} image files in {self.folder} can be read (first: {name}, {reason}); open one in "
                "a viewer, and give a folder of readable images")

    def decode(self, place: int, name: str) -> Image.Image:
        """Decode one file."""
        name.encode("utf-8")  # a name that the log could not hold: UnicodeEncodeError, so skipped
        check_regular(self.folder / name)
        with (self.folder / name).open("rb") as stream, Image.open(stream) as opened:
            return to_rgb(opened)

    def reason(self, name: str, error: Exception) -> str:
        """Say in a few words, without the path, why a file was skipped."""
        path = self.folder / name
        if path.is_file() and path.stat().st_size == 0:
            return "empty file"
        return super().reason(name, error)


def image_files(folder: Path) -> Iterator[str]:
    """Relative names of the image files below `folder`, in no order; hidden files and folders are left out."""
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from ((Path(root) / name).relative_to(folder).as_posix() for name in files
                    if not name.startswith(".") and name.lower().endswith(SUFFIXES))

"""One door to every pool: what `pool.path` names decides which."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from asgkit.pool.base import Pool, PoolError
from asgkit.pool.folder import ImagePool, image_files
from asgkit.pool.prompts import SUFFIX, prompts_of_file
from asgkit.pool.rows import READERS, NoDataSet, open_rows

HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # owner/name
KNOWN = (f"a folder of images, a {' or '.join(READERS)} file, a folder of such files, or a text file ({SUFFIX}) with a "
         "prompt a line")
log = logging.getLogger(__name__)


def open_pool(path: str | Path, *, column: str | None = None, size: int | None = None, limit: int | None = None,
              seed: int = 0, rank: int = 0, world_size: int = 1) -> Pool[Any]:
    """The pool at `path`: a folder of images, rows of a data set, or the lines of a text file.

    A data set is a .parquet or .tar (webdataset) file, a folder of such files without images, or, where nothing lies at
    `path` and it has the form owner/name, one of the hub, which takes a connection or the library's cache.
    column: of a data set, see `open_rows`. size: side of pictures in px (None: native). The rest as for `Pool`.

    Raises PoolError naming the fix where that gives no usable pool.
    """
    path, schedule = Path(path), {"limit": limit, "seed": seed, "rank": rank, "world_size": world_size}
    if files := data_files(path):
        return open_rows(path, files, column=column, size=size, **schedule)
    named_file = path.suffix.lower() in (*READERS, SUFFIX)
    if not path.exists() and not named_file and HUB.fullmatch(str(path)):
        return _of_the_hub(path, column=column, size=size, **schedule)
    if path.exists() and column is not None:
        raise PoolError(f"pool.column={column} is for the rows of a data set, and {path} is none: leave it out")
    if path.is_file() and path.suffix.lower() == SUFFIX:
        return prompts_of_file(path, **schedule)
    if path.is_dir() or not (path.exists() or named_file):
        return ImagePool(path, size=size, **schedule)  # which says what is missing
    raise PoolError(f"no pool at {path}: {'it is none of these' if path.exists() else 'there is no such file'}; "
                    f"a pool is {KNOWN}")


def data_files(path: Path) -> list[Path]:
    """The files of a data set at `path`, sorted; none where it is something else or a folder that holds images.

    Raises PoolError for a folder of files of both kinds.
    """
    if path.is_file():
        return [path] if path.suffix.lower() in READERS else []
    if not path.is_dir() or next(image_files(path), None) is not None:
        return []
    found = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in READERS and not _hidden(file, path)]
    for file in found:
        if not file.is_file():  # a pipe would be waited for
            log.warning("skipped %s: not a regular file", file.relative_to(path))
    found = [file for file in found if file.is_file()]
    kinds = sorted({file.suffix.lower() for file in found})
    if len(kinds) > 1:
        raise PoolError(f"{path} holds files of several kinds ({', '.join(kinds)}): give a folder of one")
    return found


def _hidden(file: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(below).parts)


def _of_the_hub(path: Path, **settings: Any) -> Pool[Any]:
    try:
        return open_rows(path, **settings)
    except NoDataSet as error:
        raise PoolError(f"no image folder at {path}: create it or give the path of a folder of images "
                        f"(and no data set of that name: {error})") from error

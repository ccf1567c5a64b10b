"""The rows of a data set: parquet files, webdataset tar shards or a data set of the hub, one column of it.

A column of images yields pictures, a column of texts yields prompts. Reading is left to the library `datasets`, an
extra of this package, which is imported when a data set is opened and not before. It keeps a copy of what it has read
in its cache (`HF_DATASETS_CACHE`), so that any row can be had at once.
"""

from __future__ import annotations

import glob
import hashlib
import io
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from PIL import Image

from asgkit.pool.base import Kind, PoolError
from asgkit.pool.pictures import PicturePool, read_regular, to_rgb
from asgkit.pool.prompts import PromptPool

if TYPE_CHECKING:
    from datasets import Dataset

READERS = {".parquet": "parquet", ".tar": "webdataset"}  # a file's suffix, and who of `datasets` reads it
EXTRA = "datasets>=5,<6"


class NoDataSet(PoolError):
    """There is no data set of this name, it is damaged, or nothing is installed that could read it."""


class RowPool(PicturePool):
    """The readable pictures of one image column, as RGB squares of `size` px, in the order of the rows.

    A picture is named `photos.parquet:12`, by its row counted from 0. Arguments as those of `PicturePool`.
    """

    holder = "data set"

    def __init__(self, place: str | Path, rows: Dataset, column: str, **settings: Any) -> None:
        self.unit = f"rows of column {column!r}"
        self._rows, self._column = rows, column
        self._marks: dict[int, str] = {}  # a short hash of each row's bytes: the name alone would not tell a change
        super().__init__(place, **settings)

    def found(self) -> list[str]:
        """The names of all rows."""
        return row_names(self.place, len(self._rows))

    def decode(self, place: int, name: str) -> Image.Image:
        """Decode one row's picture, from the bytes in the row or else from the file that it names."""
        cell = self._rows[place][self._column]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise OSError(None, "no picture in this row")
        content = read_regular(Path(cell["path"])) if cell["bytes"] is None else cell["bytes"]
        if place not in self._marks:
            self._marks[place] = hashlib.blake2b(content, digest_size=8).hexdigest()
        with Image.open(io.BytesIO(content)) as opened:
            return to_rgb(opened)

    def contents(self) -> list[str]:
        """Names and hashes of the usable rows."""
        return [*self.names, *(self._marks[place] for place in self.places)]


def open_rows(place: str | Path, files: Sequence[Path] = (), *, column: str | None = None, size: int | None = None,
              **schedule: Any) -> RowPool | PromptPool:
    """The pool of a data set's column: of `files` of one kind, or of the data set that the hub knows as `place`.

    column: None takes the only image column, else the only text column. size: side in px of pictures; the rest as for
    `Pool`. Raises NoDataSet without the library `datasets` and for what it cannot read, PoolError for a column that is
    not there or holds neither images nor texts.
    """
    library = _library()
    rows = _read(library, place, files)
    column, kind = choose_column(_kinds(library, rows), column, place)
    rows = rows.select_columns([column])
    if kind == "pictures":
        return RowPool(place, rows.cast_column(column, library.Image(decode=False)), column, size=size, **schedule)
    texts = [(text or "").strip() for text in rows[column]]
    named = list(zip(row_names(place, len(texts)), texts, strict=True))
    return PromptPool(place, named, unit=f"rows of column {column!r}", holder="data set", **schedule)


def row_names(place: str | Path, count: int) -> list[str]:
    """`photos.parquet:0`, `photos.parquet:1`, ..."""
    return [f"{Path(place).name}:{row}" for row in range(count)]


def choose_column(kinds: Mapping[str, Kind | str], column: str | None, place: str | Path) -> tuple[str, Kind]:
    """The column to draw from and what it yields; `kinds` says so of each column, or names the type of any other.

    Raises PoolError listing the columns when the one named is not there or yields nothing, or when none was named
    and the choice is not clear. Columns such as `__key__`, which webdataset adds, are taken only by name.
    """
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    if column is None:
        column = _only_column(kinds)
        if column is None:
            raise PoolError(f"which column of {place}? Name one with pool.column; there are: {listed}")
    kind = kinds.get(column)
    if kind not in ("pictures", "prompts"):
        what = "has no column" if kind is None else f"holds neither images nor texts ({kind}) in its column"
        raise PoolError(f"{place} {what} {column!r}; there are: {listed}")
    return column, kind


def _only_column(kinds: Mapping[str, Kind | str]) -> str | None:
    """The only column of images, or, where there is none of images, of texts; None where it is not clear."""
    for kind in ("pictures", "prompts"):
        named = [name for name, own in kinds.items() if own == kind and not name.startswith("__")]
        if named:
            return named[0] if len(named) == 1 else None
    return None


def _kinds(library: ModuleType, rows: Dataset) -> dict[str, Kind | str]:
    """What each column yields, or the name of its type."""
    kinds: dict[str, Kind | str] = {}
    for name, feature in rows.features.items():
        dtype = feature.dtype if isinstance(feature, library.Value) else type(feature).__name__
        text = dtype in ("string", "large_string")
        kinds[name] = "pictures" if isinstance(feature, library.Image) else "prompts" if text else dtype
    return kinds


def _read(library: ModuleType, place: str | Path, files: Sequence[Path]) -> Dataset:
    """All rows of files of one kind, in the order given, or of the hub's data set; raises NoDataSet saying why not."""
    with _quiet(library):
        try:
            splits = _load(library, files) if files else library.load_dataset(str(place))
        except (library.exceptions.DatasetsError, OSError, ValueError, tarfile.TarError) as error:
            text = " ".join(str(error.__cause__ or error).split())
            raise NoDataSet(f"cannot read the data set {place}: {type(error).__name__}: {text}") from error
    return _one_split(splits, place)


def _load(library: ModuleType, files: Sequence[Path]) -> Mapping[str, Dataset]:
    # names are escaped, because the library reads them as patterns
    names = [glob.escape(str(path.resolve())) for path in files]
    return library.load_dataset(READERS[files[0].suffix.lower()], data_files=names)


def _one_split(splits: Mapping[str, Dataset], place: str | Path) -> Dataset:
    if "train" in splits:
        return splits["train"]
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise PoolError(f"the data set {place} has no split train, and several others: {', '.join(splits)}")


def _library() -> ModuleType:
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise NoDataSet("rows of a data set are read by the library datasets, the extra `data` of this package: "
                        f"pip install '{EXTRA}'") from error
    return datasets


@contextmanager
def _quiet(library: ModuleType) -> Iterator[None]:
    """Keep the library's progress bars out of files; on a terminal they stay."""
    if sys.stderr.isatty() or library.are_progress_bars_disabled():
        yield
        return
    library.disable_progress_bars()
    try:
        yield
    finally:
        library.enable_progress_bars()

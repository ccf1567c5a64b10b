"""Run logs as results keep them: field by field and compressed, a fifth smaller than packed lines, and lossless.

`log.columns.xz` holds JSON lines. The first says how the records follow each other, `[[kind, count], ...]`; then comes
a line per kind of record, `{"step": [1, 1, ...], "proposer/reward": [0.2, 0.4, ...], ...}`. A kind is a set of fields:
in a run, that of an understanding or of a generation step. Numbers of one field lie together and compress well.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

NAME = "log.columns.xz"
Record = dict[str, Any]
# Left out of packed logs, of which they are a quarter: seeds and a control's rewards follow from the run's seed and
# step, advantages from the rewards.
DERIVED = ("proposer/advantages", "generator/advantages", "generator/seeds")
# Text of short numbers: no bytes stand at fixed places (pb = 0), and the last one says much of the next (lc = 4).
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]


def pack_log(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write records, without the fields `DERIVED`, to a packed log; equal records give equal bytes.

    Raises ValueError for NaN and infinities, which a log never holds.
    """
    path.write_bytes(lzma.compress(to_columns(map(thin, records)), format=lzma.FORMAT_XZ, filters=_FILTERS))


def read_packed_log(path: Path) -> list[Record]:
    """The records of a packed log, in order. Raises lzma.LZMAError for a damaged file."""
    return from_columns(lzma.decompress(path.read_bytes()))


def thin(record: Mapping[str, Any]) -> Record:
    """A record without the fields `DERIVED`."""
    return {name: value for name, value in record.items() if name not in DERIVED}


def to_columns(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Records as the lines that the module describes."""
    kinds: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    order = []
    for fields, run in groupby(records, key=tuple):
        held, count = kinds.setdefault(fields, []), list(run)
        held += count
        order.append([list(kinds).index(fields), len(count)])
    columns = [{name: [record[name] for record in held] for name in fields} for fields, held in kinds.items()]
    lines = [json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for line in (order, *columns)]
    return "\n".join(lines).encode() + b"\n"


def from_columns(content: bytes) -> list[Record]:
    """The inverse of `to_columns`."""
    order, *kinds = map(json.loads, content.rstrip(b"\n").split(b"\n"))  # not splitlines: an answer may hold U+2028
    rows = [iter([dict(zip(kind, values, strict=True)) for values in zip(*kind.values(), strict=True)])
            for kind in kinds]
    return [next(rows[kind]) for kind, count in order for _ in range(count)]

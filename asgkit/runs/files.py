"""Files that survive a kill: atomic writes, JSON lines with a torn end, sha256 sums, syncing to disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON atomically.

    Raises ValueError on NaN and Inf, TypeError on keys that are not strings: neither would read back.
    """
    _refuse_odd_keys(content)
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def _refuse_odd_keys(content: Any) -> None:
    """Raise TypeError on a key such as 3, which JSON would turn into "3" without a word."""
    if isinstance(content, Mapping):
        odd = [key for key in content if not isinstance(key, str)]
        if odd:
            raise TypeError(f"JSON keys must be strings, not {odd[:3]}; convert them before saving")
        content = list(content.values())
    if isinstance(content, list | tuple):
        for item in content:
            _refuse_odd_keys(item)


def read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read a JSON-lines file as (line, record) pairs, without the last line if a kill tore it."""
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    if torn:
        log.warning("%s ends in a torn line of %d bytes: left out", path.name, len(torn))
    # Split at b"\n" only: str.splitlines would also split at the exotic separators that an answer may hold.
    lines = [line.decode("utf-8") + "\n" for line in whole.split(b"\n") if line]
    return [(line, json.loads(line)) for line in lines]


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one line of strict JSON and hand it to the system, so that a killed process loses none."""
    with path.open("a", encoding="utf-8", newline="\n") as stream:
        stream.write(json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n")


def write_atomic(path: Path, text: str) -> None:
    """Write aside, sync and rename: a reader sees the old file or the new one, never half of one."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(text, encoding="utf-8", newline="\n")
    sync(aside)
    os.replace(aside, path)


def sync(path: Path) -> None:
    """Force a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force everything below a folder, and the folder itself, to disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sha256_sums(folder: Path) -> dict[str, str]:
    """Map each file below `folder`, its manifest excepted, to its sha256."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / "manifest.json")
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()) for path in files}


def sha256(content: bytes) -> str:
    """Return the hexadecimal sha256 of some bytes."""
    return hashlib.sha256(content).hexdigest()

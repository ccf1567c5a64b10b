"""Prompts: the lines of a plain text file, or any other list of named texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from asgkit.pool.base import Pool, PoolError, PoolPrompt

SUFFIX = ".txt"
Named = tuple[str, str | None]  # a place, and its text without spaces at the ends; None: bytes that are no text


class PromptPool(Pool[PoolPrompt]):
    """Named texts as prompts, in the order given; empty ones and repetitions of an earlier one are skipped.

    `unit` says what the texts are (`lines`); `limit`, `seed`, `rank` and `world_size` are those of `Pool`.
    """

    kind = "prompts"
    noun = "prompt"

    def __init__(self, place: str | Path, texts: Sequence[Named], *, unit: str, holder: str = "file",
                 **schedule: Any) -> None:
        self.unit, self.holder, self._texts = unit, holder, texts
        self._first: dict[str, int] = {}
        for i, (_, text) in enumerate(texts):
            if text is not None:
                self._first.setdefault(text, i)
        super().__init__(place, **schedule)

    def found(self) -> list[str]:
        """The places of all texts."""
        if not self._texts:
            raise PoolError(f"no {self.unit} in {self.place}: write some prompts, or give another {self.holder}")
        return [name for name, _ in self._texts]

    def trouble(self, place: int, name: str) -> str:
        """Why a text is no prompt; empty if it is one."""
        text = self._texts[place][1]
        if text is None:
            return "not text in UTF-8"
        if not text:
            return "empty"
        first = self._first[text]
        return "" if first == place else f"the same as {self._texts[first][0]}"

    def item(self, index: int) -> PoolPrompt:
        """Usable prompt `index` with its place."""
        return PoolPrompt(self.names[index], index, self._texts[self.places[index]][1] or "")

    def contents(self) -> list[str]:
        """Places and texts: a prompt that was changed in its place makes another pool."""
        return [part for place in self.places for part in self._texts[place] if part is not None]


def prompts_of_file(path: Path, **schedule: Any) -> PromptPool:
    """The prompts of a text file, one a line, named `prompts.txt:12`; spaces around a prompt do not belong to it."""
    texts = [(f"{path.name}:{number}", text) for number, text in enumerate(_lines(path), start=1)]
    return PromptPool(path, texts, unit="lines", **schedule)


def _lines(path: Path) -> Iterator[str | None]:
    """Each line as text, None where its bytes are none; a mark at the start of the file is no part of the first."""
    for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines():
        try:
            yield line.decode("utf-8").strip()
        except UnicodeDecodeError:
            yield None

"""A word-level tokenizer: lossless on the tiny world's text, strict on everything else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PAD, EOS = 0, 1


class WordTokenizer:
    """Words separated by spaces; id 0 pads, id 1 ends. Unknown words raise: nothing is silently replaced."""

    pad, end = PAD, EOS

    def __init__(self, words: Sequence[str]) -> None:
        self.words = ("<pad>", "<eos>", *words)
        self.index = {word: i for i, word in enumerate(self.words)}
        if len(self.index) != len(self.words):
            raise ValueError("the vocabulary holds a word twice")

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; raises ValueError naming words outside the vocabulary."""
        words = text.split()
        unknown = sorted({word for word in words if word not in self.index})
        if unknown:
            raise ValueError(f"words outside this tiny model's vocabulary of {len(self)}: {unknown}; "
                             f"rephrase {text!r} with known words")
        return [self.index[word] for word in words]

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the first end or padding token."""
        words = []
        for i in ids:
            if i in (PAD, EOS):
                break
            words.append(self.words[i])
        return " ".join(words)

    def batch(self, texts: Sequence[str], *, left: bool = False) -> tuple[Tensor, Tensor]:
        """Padded ids (B, T) int64 and their mask (B, T) bool; `left` pads on the left."""
        rows = [self.encode(text) for text in texts]
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), PAD, dtype=torch.int64)
        for i, row in enumerate(rows):
            start = width - len(row) if left else 0
            ids[i, start : start + len(row)] = torch.tensor(row, dtype=torch.int64)
        lengths = torch.tensor([len(row) for row in rows])[:, None]
        positions = torch.arange(width)[None]
        mask = positions >= width - lengths if left else positions < lengths
        return ids, mask

"""The understanding half of every backbone: prefix, answer, text_stats and the role adapters, over four hooks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from asgkit.backbones.base import Answers, BackboneSpec, Prefix, Role, TextStats
from asgkit.backbones.roles import RoleAdapters
from asgkit.backbones.sampling import log_softmax_stats, sample_tokens, uniforms

TAG = "<answer>"
KeyValues = list[tuple[Tensor, Tensor]]  # per layer: keys, values (B, heads, T, d_head)


class Tokenizer(Protocol):
    """Words to ids and back. `batch` is for prompts and may wrap them in a chat template; `encode` never does."""

    pad: int
    end: int  # closes an answer

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without an end token."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the first end or padding token."""

    def batch(self, texts: Sequence[str], *, left: bool = False) -> tuple[Tensor, Tensor]:
        """Padded ids (B, T) int64 of prompts and their mask (B, T) bool; `left` pads on the left."""


@dataclass(frozen=True)
class _State:
    """A text pass that can go on: cache, key mask, last logits and the next position of every row."""

    past: KeyValues | None
    mask: Tensor
    logits: Tensor
    position: Tensor


def select_rows(past: KeyValues, rows: Tensor) -> KeyValues:
    """The past of rows `rows` (R,), one copy per row."""
    return [(k[rows], v[rows]) for k, v in past]


class Reader:
    """Understanding shared by all backbones. A subclass owns `network`, draws, and fills four hooks:

    `see` (images to keys and values), `unseen` (the same for prompts without an image), `read` (a causal pass over
    words after a past) and `word_logits`. `text_start` and `blank_start` are the positions of a prompt's first word
    after `see` and after `unseen`.
    """

    text_start = 0
    blank_start = 0
    rows_at_once = 1024  # rows decoded together: bounds the copied key-value cache

    def __init__(self, network: nn.Module, tokenizer: Tokenizer, spec: BackboneSpec, *,
                 targets: dict[Role, str], rank: int = 8, alpha: int = 16, dropout: float = 0.0, seed: int = 0,
                 device: str | torch.device = "cpu", precision: str = "fp32", quantise: str = "") -> None:
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision {precision!r} must be 'fp32' or 'bf16'")
        self.spec, self.precision, self.tokenizer = spec, precision, tokenizer
        self.network = network.to(device).eval()
        self.device = torch.device(device)
        self.roles = RoleAdapters(self.network, targets, rank=rank, alpha=alpha, dropout=dropout, seed=seed,
                                  quantise=quantise, compute=torch.bfloat16 if precision == "bf16" else None)
        self.network.to(device)

    # -- hooks -------------------------------------------------------------------------------------------------
    def see(self, images: Sequence[Image.Image]) -> KeyValues:
        """Keys and values (B, heads, P, d) of all that stands before a prompt about each image."""
        raise NotImplementedError

    def unseen(self, count: int) -> KeyValues | None:
        """The same for `count` prompts about no image; None when nothing stands before them."""
        return None

    def read(self, ids: Tensor, mask: Tensor, past: KeyValues | None, past_mask: Tensor | None, start: Tensor
             ) -> tuple[Tensor, KeyValues]:
        """Causal pass over words ids (R, T), mask (R, T) bool, after a past; `start` (R,): position of the first
        real word. past_mask: (R, P) bool, None when every past key exists. Returns hidden (R, T, D), the new cache.
        """
        raise NotImplementedError

    def word_logits(self, hidden: Tensor) -> Tensor:
        """Raw logits (..., V) of hidden states (..., D)."""
        raise NotImplementedError

    # -- roles -------------------------------------------------------------------------------------------------
    def use_role(self, role: Role | None) -> AbstractContextManager[None]:
        """Activate one role inside a `with` block."""
        return self.roles.use(role)

    def role_parameters(self, role: Role) -> list[nn.Parameter]:
        """Trainable tensors of a role in module order."""
        return self.roles.parameters(role)

    def save_role(self, role: Role, path: Path) -> None:
        """Write a role's adapter to `path/adapter.safetensors`."""
        self.roles.save(role, Path(path))

    def load_role(self, role: Role, path: Path) -> None:
        """Read a role's adapter; raises unless every tensor fits."""
        self.roles.load(role, Path(path))

    def _cast(self):
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    # -- reading -----------------------------------------------------------------------------------------------
    def prefix(self, images: Sequence[Image.Image] | None, *, role: Role | None) -> Prefix:
        """Keys and values of every image under one role, computed once; None: the prompts will be about no image."""
        if images is None:
            return Prefix(0, role, None)
        with torch.no_grad(), self.use_role(role), self._cast():
            cache = self.see(images)
        return Prefix(len(images), role, cache)

    def _begin(self, prefix: Prefix, rows: Sequence[int], prompts: Sequence[str]) -> _State:
        ids, mask = (t.to(self.device) for t in self.tokenizer.batch(prompts, left=True))
        if prefix.cache is None:
            past, first = self.unseen(len(prompts)), self.blank_start
        else:
            past, first = select_rows(prefix.cache, torch.tensor(rows, device=self.device)), self.text_start
        start = torch.full((len(prompts),), first, dtype=torch.int64, device=self.device)
        hidden, kept = self.read(ids, mask, past, None, start)
        seen = kept[0][0].shape[2] - ids.shape[1]
        keys = torch.cat([torch.ones(len(prompts), seen, dtype=torch.bool, device=self.device), mask], 1)
        return _State(kept, keys, self.word_logits(hidden[:, -1]).float(), start + mask.sum(1))

    def _advance(self, state: _State, ids: Tensor) -> _State:
        step = torch.ones(len(ids), 1, dtype=torch.bool, device=self.device)
        hidden, kept = self.read(ids[:, None], step, state.past, state.mask, state.position)
        return _State(kept, torch.cat([state.mask, step], 1), self.word_logits(hidden[:, -1]).float(),
                      state.position + 1)

    def answer(self, prefix: Prefix, prompts: Sequence[str], *, rows: Sequence[int] | None = None,
               max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0,
               keep_logits: int = 0) -> Answers:
        """Continue every prompt about its image; stops early when all rows have ended."""
        rows = list(range(prefix.size if prefix.size else len(prompts))) if rows is None else list(rows)
        if len(rows) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many rows, got {len(rows)}")
        noise = uniforms(seed, len(prompts), max_new_tokens).to(self.device)
        parts, chunk = [], self.rows_at_once
        with torch.no_grad(), self.use_role(prefix.role), self._cast():
            for i in range(0, len(prompts), chunk):
                state = self._begin(prefix, rows[i : i + chunk], prompts[i : i + chunk])
                parts.append(self._decode(state, noise[i : i + chunk], temperature, top_p, keep_logits))
        return _join(parts, self.tokenizer, keep_logits)

    def _decode(self, state: _State, noise: Tensor, temperature: float, top_p: float, keep: int) -> dict[str, Tensor]:
        rows, steps = noise.shape
        alive = torch.ones(rows, dtype=torch.bool, device=self.device)
        columns: dict[str, list[Tensor]] = {"ids": [], "mask": [], "logp": [], "logits": []}
        for t in range(steps):
            if t:
                state = self._advance(state, columns["ids"][-1])
            picked = sample_tokens(state.logits, noise[:, t], temperature, top_p)
            picked = torch.where(alive, picked, self.tokenizer.pad)
            logp, _ = log_softmax_stats(state.logits, picked)
            if t < keep:
                columns["logits"].append(state.logits)
            for name, value in (("ids", picked), ("mask", alive), ("logp", logp.masked_fill(~alive, 0.0))):
                columns[name].append(value)
            alive = alive & (picked != self.tokenizer.end)
            if not alive.any():
                break
        return {name: torch.stack(values, 1) for name, values in columns.items() if values}

    # -- scoring -----------------------------------------------------------------------------------------------
    def _completion_ids(self, completions: Answers | Sequence[str]) -> tuple[Tensor, Tensor]:
        if isinstance(completions, Answers):
            return completions.ids, completions.mask
        ids = [self.tokenizer.encode(text) + [self.tokenizer.end] for text in completions]
        width = max(map(len, ids))
        out = torch.tensor([row + [self.tokenizer.pad] * (width - len(row)) for row in ids])
        lengths = torch.tensor([len(row) for row in ids])
        return out, torch.arange(width)[None] < lengths[:, None]

    def _past_of(self, images: Sequence[Image.Image] | None, rows: Sequence[int] | None, count: int
                 ) -> tuple[KeyValues | None, int]:
        """What stands before `count` prompts, and the position of their first word."""
        if images is None:
            return self.unseen(count), self.blank_start
        index = torch.tensor(list(range(len(images))) if rows is None else list(rows), device=self.device)
        return select_rows(self.see(images), index), self.text_start

    def text_stats(self, images: Sequence[Image.Image] | None, prompts: Sequence[str],
                   completions: Answers | Sequence[str], *, rows: Sequence[int] | None = None, role: Role | None,
                   grad: bool = False, keep_logits: bool = False) -> TextStats:
        """One teacher-forced pass over prompt and completion (string completions get their end token)."""
        ids, mask = (t.to(self.device) for t in self._completion_ids(completions))
        before, before_mask = (t.to(self.device) for t in self.tokenizer.batch(prompts, left=True))
        with torch.set_grad_enabled(grad), self.roles.use(role, dropout=grad), self._cast():
            past, first = self._past_of(images, rows, len(ids))
            start = torch.full((len(ids),), first, dtype=torch.int64, device=self.device)
            hidden, _ = self.read(torch.cat([before, ids], 1), torch.cat([before_mask, mask], 1), past, None, start)
            width = ids.shape[1]
            logits = self.word_logits(hidden[:, -width - 1 : -1]).float()
        logp, entropy = log_softmax_stats(logits, ids)
        weight = mask.float()[..., None]
        pooled = (hidden[:, -width:].float() * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        return TextStats(logp.masked_fill(~mask, 0.0), entropy.masked_fill(~mask, 0.0), mask,
                         logits if keep_logits else None, pooled)


def _join(parts: list[dict[str, Tensor]], tokenizer: Tokenizer, keep: int) -> Answers:
    """Concatenate chunks that may have stopped at different lengths."""
    width = max(part["ids"].shape[1] for part in parts)
    pad = lambda x, value: nn.functional.pad(x, (0, width - x.shape[1]), value=value)
    ids = torch.cat([pad(part["ids"], tokenizer.pad) for part in parts])
    mask = torch.cat([pad(part["mask"], False) for part in parts])
    logp = torch.cat([pad(part["logp"], 0.0) for part in parts])
    texts = [tokenizer.decode(row) for row in ids.tolist()]
    return Answers(texts, ids, mask, logp, _join_logits(parts) if keep else None, _starts(texts, ids, tokenizer))


def _starts(texts: list[str], ids: Tensor, tokenizer: Tokenizer) -> Tensor | None:
    """For each text the first token after its opening `<answer>` tag, 0 without one; None where no text has one."""
    tagged = [TAG in text.lower() for text in texts]
    if not any(tagged):
        return None
    first = lambda row: next(n for n in range(1, len(row) + 1) if TAG in tokenizer.decode(row[:n]).lower())
    return torch.tensor([first(row) if has else 0 for has, row in zip(tagged, ids.tolist(), strict=True)])


def _join_logits(parts: list[dict[str, Tensor]]) -> Tensor:
    width = max(part["logits"].shape[1] for part in parts)
    return torch.cat([nn.functional.pad(p["logits"], (0, 0, 0, width - p["logits"].shape[1])) for p in parts])

"""The understanding half of every tiny model: prefix, answer, text_stats and the role adapters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from asgkit.backbones.base import Answers, BackboneSpec, Prefix, Role, TextStats
from asgkit.backbones.roles import RoleAdapters
from asgkit.backbones.tiny.codes import to_tensor
from asgkit.backbones.tiny.sampling import log_softmax_stats, sample_tokens, uniforms
from asgkit.backbones.tiny.tokenizer import EOS, PAD, WordTokenizer
from asgkit.backbones.tiny.trunk import KeyValues, select_rows

CHECKPOINTS = Path(__file__).parent / "checkpoints"
TRUNK_TARGETS = r".*trunk\.blocks\.\d+\.(qkv|o|f1|f2)"  # modules that carry a reader's adapter; the stem has none
CHUNK = 1024  # rows decoded at once: bounds the copied key-value cache to a few hundred MB


@dataclass(frozen=True)
class _State:
    """A text pass that can go on: cache, key mask, last logits and the next position of every row."""

    past: KeyValues | None
    mask: Tensor
    logits: Tensor
    position: Tensor


# A tensor that only this model has. Only its name is asked for, so that files of earlier versions are known too.
MARKS = {"tiny-ar": "coarse_book", "tiny-flow": "expert.position", "tiny-diffusion": "queries"}


def read_checkpoint(path: Path, model: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint of `model`.

    Raises FileNotFoundError with the command that makes one, SafetensorError naming a damaged file, ValueError naming
    the model that a sound file belongs to.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path.name}; shipped bases: "
                                f"{sorted(p.stem for p in CHECKPOINTS.glob('*.safetensors'))}; "
                                f"train one with `asgkit pretrain {model}`")
    try:
        with safe_open(path, framework="pt") as file:
            tensors, meta = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except SafetensorError as error:  # its own text does not say which file
        raise SafetensorError(f"{path}: {error}") from error
    if MARKS[model] not in tensors:
        others = [name for name, mark in MARKS.items() if mark in tensors]
        raise ValueError(f"{path.name} is no checkpoint of {model}: "
                         + (f"set backbone={others[0]}" if others else "train one with `asgkit pretrain`"))
    return tensors, meta


class TinyUnderstanding:
    """Shared by the tiny models; the subclass owns `network` (with `see`, `read`, `word_head`) and draws."""

    def __init__(self, network: nn.Module, words: list[str], spec: BackboneSpec, *,
                 targets: dict[Role, str], rank: int = 8, alpha: int = 16, dropout: float = 0.0, seed: int = 0,
                 device: str | torch.device = "cpu", precision: str = "fp32") -> None:
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision {precision!r} must be 'fp32' or 'bf16'")
        self.spec, self.precision = spec, precision
        self.tokenizer = WordTokenizer(words)
        self.network = network.to(device).eval()
        self.device = torch.device(device)
        self.roles = RoleAdapters(self.network, targets, rank=rank, alpha=alpha, dropout=dropout, seed=seed)
        self.network.to(device)

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
    def prefix(self, images: Sequence[Image.Image], *, role: Role | None) -> Prefix:
        """Keys and values of every image under one role, computed once."""
        with torch.no_grad(), self.use_role(role), self._cast():
            cache = self.network.see(to_tensor(images).to(self.device))
        return Prefix(len(images), role, cache)

    def _begin(self, past: KeyValues | None, prompts: Sequence[str]) -> _State:
        ids, mask = (t.to(self.device) for t in self.tokenizer.batch(prompts, left=True))
        start = torch.zeros(len(prompts), dtype=torch.int64, device=self.device)
        hidden, kept = self.network.read(ids, mask, past, None, start)
        seen = kept[0][0].shape[2] - ids.shape[1]
        keys = torch.cat([torch.ones(len(prompts), seen, dtype=torch.bool, device=self.device), mask], 1)
        return _State(kept, keys, self.network.word_head(hidden[:, -1]).float(), mask.sum(1))

    def _advance(self, state: _State, ids: Tensor) -> _State:
        step = torch.ones(len(ids), 1, dtype=torch.bool, device=self.device)
        hidden, kept = self.network.read(ids[:, None], step, state.past, state.mask, state.position)
        return _State(kept, torch.cat([state.mask, step], 1), self.network.word_head(hidden[:, -1]).float(),
                      state.position + 1)

    def answer(self, prefix: Prefix, prompts: Sequence[str], *, rows: Sequence[int] | None = None,
               max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0,
               keep_logits: int = 0) -> Answers:
        """Continue every prompt about its image; stops early when all rows have ended."""
        rows = list(range(prefix.size)) if rows is None else list(rows)
        if len(rows) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many rows, got {len(rows)}")
        noise = uniforms(seed, len(prompts), max_new_tokens).to(self.device)
        parts = []
        with torch.no_grad(), self.use_role(prefix.role), self._cast():
            for i in range(0, len(prompts), CHUNK):
                index = torch.tensor(rows[i : i + CHUNK], device=self.device)
                state = self._begin(select_rows(prefix.cache, index), prompts[i : i + CHUNK])
                parts.append(self._decode(state, noise[i : i + CHUNK], temperature, top_p, keep_logits))
        return _join(parts, self.tokenizer, keep_logits)

    def _decode(self, state: _State, noise: Tensor, temperature: float, top_p: float, keep: int) -> dict[str, Tensor]:
        rows, steps = noise.shape
        alive = torch.ones(rows, dtype=torch.bool, device=self.device)
        columns: dict[str, list[Tensor]] = {"ids": [], "mask": [], "logp": [], "logits": []}
        for t in range(steps):
            if t:
                state = self._advance(state, columns["ids"][-1])
            picked = sample_tokens(state.logits, noise[:, t], temperature, top_p)
            picked = torch.where(alive, picked, PAD)
            logp, _ = log_softmax_stats(state.logits, picked)
            if t < keep:
                columns["logits"].append(state.logits)
            for name, value in (("ids", picked), ("mask", alive), ("logp", logp.masked_fill(~alive, 0.0))):
                columns[name].append(value)
            alive = alive & (picked != EOS)
            if not alive.any():
                break
        return {name: torch.stack(values, 1) for name, values in columns.items() if values}

    # -- scoring -----------------------------------------------------------------------------------------------
    def _completion_ids(self, completions: Answers | Sequence[str]) -> tuple[Tensor, Tensor]:
        if isinstance(completions, Answers):
            return completions.ids, completions.mask
        ids = [self.tokenizer.encode(text) + [EOS] for text in completions]
        width = max(map(len, ids))
        out = torch.tensor([row + [PAD] * (width - len(row)) for row in ids])
        lengths = torch.tensor([len(row) for row in ids])
        return out, torch.arange(width)[None] < lengths[:, None]

    def text_stats(self, images: Sequence[Image.Image] | None, prompts: Sequence[str],
                   completions: Answers | Sequence[str], *, rows: Sequence[int] | None = None, role: Role | None,
                   grad: bool = False, keep_logits: bool = False) -> TextStats:
        """One teacher-forced pass over prompt and completion (string completions get their end token)."""
        ids, mask = (t.to(self.device) for t in self._completion_ids(completions))
        before, before_mask = (t.to(self.device) for t in self.tokenizer.batch(prompts, left=True))
        with torch.set_grad_enabled(grad), self.roles.use(role, dropout=grad), self._cast():
            past = None
            if images is not None:
                index = torch.tensor(list(range(len(images))) if rows is None else list(rows), device=self.device)
                past = select_rows(self.network.see(to_tensor(images).to(self.device)), index)
            hidden, _ = self.network.read(torch.cat([before, ids], 1), torch.cat([before_mask, mask], 1), past, None,
                                          torch.zeros(len(ids), dtype=torch.int64, device=self.device))
            width = ids.shape[1]
            logits = self.network.word_head(hidden[:, -width - 1 : -1]).float()
        logp, entropy = log_softmax_stats(logits, ids)
        weight = mask.float()[..., None]
        pooled = (hidden[:, -width:].float() * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        return TextStats(logp.masked_fill(~mask, 0.0), entropy.masked_fill(~mask, 0.0), mask,
                         logits if keep_logits else None, pooled)


def _join(parts: list[dict[str, Tensor]], tokenizer: WordTokenizer, keep: int) -> Answers:
    """Concatenate chunks that may have stopped at different lengths."""
    width = max(part["ids"].shape[1] for part in parts)
    pad = lambda x, value: nn.functional.pad(x, (0, width - x.shape[1]), value=value)
    ids = torch.cat([pad(part["ids"], PAD) for part in parts])
    mask = torch.cat([pad(part["mask"], False) for part in parts])
    logp = torch.cat([pad(part["logp"], 0.0) for part in parts])
    texts = [tokenizer.decode(row) for row in ids.tolist()]
    return Answers(texts, ids, mask, logp, _join_logits(parts) if keep else None)


def _join_logits(parts: list[dict[str, Tensor]]) -> Tensor:
    width = max(part["logits"].shape[1] for part in parts)
    return torch.cat([nn.functional.pad(p["logits"], (0, 0, 0, width - p["logits"].shape[1])) for p in parts])


def network_settings(meta: dict[str, str]) -> tuple[dict, list[str], dict]:
    """Sizes, vocabulary and pre-training settings stored in a checkpoint's metadata."""
    return json.loads(meta["network"]), json.loads(meta["words"]), json.loads(meta["pretrain"])

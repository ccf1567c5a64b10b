"""The protocol between the method and a unified multimodal model: ten batched methods and their data classes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn

from asgkit.prompts import Prompts

Role = Literal["proposer", "solver", "generator"]
BACKBONES = ("tiny-ar", "tiny-flow", "tiny-diffusion")  # shipped with their weights
REAL = {"janus": "Janus", "blip3o": "Blip3o", "bagel": "Bagel", "vargpt": "Vargpt"}  # module: its class
ROLES: tuple[Role, ...] = ("proposer", "solver", "generator")


@dataclass(frozen=True)
class BackboneSpec:
    """What the trainer may know of a model.

    paradigm: how it draws; image_side: side in pixels of the square images it reads and draws; code_shape: shape of
    one drawing's codes (tokens) or latent; vocabulary: size of the text vocabulary; max_new_tokens: longest text;
    times: how its pre-training drew the times of a regression loss (`none` for tokens).
    """

    name: str
    paradigm: Literal["autoregressive", "flow", "diffusion"]
    image_side: int
    code_shape: tuple[int, ...]
    vocabulary: int
    max_new_tokens: int
    prompts: Prompts
    times: Literal["none", "logit_normal", "uniform"] = "none"


@dataclass(frozen=True)
class Prefix:
    """The images' key-value cache under one role; `cache` belongs to the backbone (None: no image). Never valid for
    another role."""

    size: int
    role: Role | None
    cache: Any


@dataclass(frozen=True)
class Answers:
    """Sampled texts. ids, mask, logp: (R, T) int64, bool, float32 (log-probabilities at temperature 1, nats);
    logits: (R, K, V) float32, raw (before temperature and top-p), of the first K tokens; None unless asked for."""

    texts: list[str]
    ids: Tensor
    mask: Tensor
    logp: Tensor
    logits: Tensor | None = None


@dataclass(frozen=True)
class TextStats:
    """Teacher-forced statistics of completions. logp, entropy: (R, T) float32 nats; mask: (R, T) bool;
    logits: (R, T, V) raw float32 or None; pooled: (R, D) mean last hidden state over the completion."""

    logp: Tensor
    entropy: Tensor
    mask: Tensor
    logits: Tensor | None
    pooled: Tensor


@dataclass(frozen=True)
class Drawings:
    """Drawn images (PIL) with the codes that made them (B, *code_shape) and, for tokens, their logp (B, L)."""

    images: list[Image.Image]
    codes: Tensor
    logp: Tensor | None


@dataclass(frozen=True)
class NoiseSpec:
    """Noise of a regression loss: S times t (B, S) in (0, 1) per drawing, and each drawing's own seed of its noise,
    so that policy and reference, and any split of the batch, see the same numbers."""

    t: Tensor
    seeds: Sequence[int]


@dataclass(frozen=True)
class GenStats:
    """Statistics of drawings. loss: (B,) mean loss; tokens: logp, entropy (B, L) nats, logits (B, L, V) raw padded
    with -inf, or None; regression: prediction and its target, both (B, S, *code_shape)."""

    loss: Tensor
    logp: Tensor | None = None
    entropy: Tensor | None = None
    logits: Tensor | None = None
    pred: Tensor | None = None
    target: Tensor | None = None


@runtime_checkable
class Backbone(Protocol):
    """A unified multimodal model with three role adapters on one frozen base. Every method is batched."""

    spec: BackboneSpec

    def prefix(self, images: Sequence[Image.Image] | None, *, role: Role | None) -> Prefix:
        """Encode images once for all later `answer` calls of one role; no gradient. None: prompts about no image."""

    def answer(self, prefix: Prefix, prompts: Sequence[str], *, rows: Sequence[int] | None = None,
               max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0,
               keep_logits: int = 0) -> Answers:
        """Continue each prompt about image `rows[i]` of the prefix (default: prompt i about image i)."""

    def text_stats(self, images: Sequence[Image.Image] | None, prompts: Sequence[str],
                   completions: Answers | Sequence[str], *, rows: Sequence[int] | None = None, role: Role | None,
                   grad: bool = False, keep_logits: bool = False) -> TextStats:
        """Score completions token by token, given the prompt and image they were sampled from."""

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Codes (B, *code_shape) of given images."""

    def generate_images(self, prompts: Sequence[str], *, seeds: Sequence[int], role: Role | None,
                        guidance: float | None = None, temperature: float | None = None) -> Drawings:
        """Draw one image per prompt; the same seed and prompt give the same image in any batch."""

    def generation_stats(self, prompts: Sequence[str], codes: Tensor, *, role: Role | None,
                         noise: NoiseSpec | None = None, grad: bool = False, keep_logits: bool = False) -> GenStats:
        """Native loss (and for tokens the log-probabilities) of drawings given their prompts."""

    def use_role(self, role: Role | None) -> AbstractContextManager[None]:
        """Activate one role's adapter (None: the frozen base) inside a `with` block."""

    def role_parameters(self, role: Role) -> list[nn.Parameter]:
        """The trainable tensors of one role, in a stable order."""

    def save_role(self, role: Role, path: Path) -> None:
        """Write one role's adapter as safetensors into a folder."""

    def load_role(self, role: Role, path: Path) -> None:
        """Read one role's adapter; a missing, unexpected or misshapen tensor raises."""


def load_backbone(name: str, *, base: str = "clean", lora_rank: int = 8, lora_alpha: int = 16,
                  lora_dropout: float = 0.0, seed: int = 0, device: str | torch.device = "cpu",
                  precision: str = "fp32") -> Backbone:
    """Open a backbone by name with fresh role adapters (LoRA B is zero, so each role starts as the base).

    name: a shipped or a real one, or `my_package.my_module:MyModel`, a class of your own that Python can import; it
    is opened by `MyModel.load(base, rank=, alpha=, dropout=, seed=, device=, precision=)`.
    base: of the tiny models which shipped checkpoint (`clean`, `registers`) or a path to one; of the real ones the
    folder with their weights, or `random` for a tiny instance of their architecture; a class of your own gets it as
    it is. Raises ValueError for unknown names, for a class that cannot be imported or is no backbone, and for a real
    model without a base.
    """
    settings = {"rank": lora_rank, "alpha": lora_alpha, "dropout": lora_dropout, "seed": seed, "device": device,
                "precision": precision}
    if ":" in name:
        return _load_own(name, base, settings)
    if name in REAL:
        if base in ("clean", "registers"):
            raise ValueError(f"{name} ships no weights: set base=FOLDER with its files (`asgkit doctor --backbone "
                             f"{name}` lists them), or base=random for a tiny instance with random weights")
        return getattr(import_module(f"asgkit.backbones.{name}"), REAL[name]).load(base, **settings)
    if name == "tiny-ar":
        from asgkit.backbones.tiny.ar import TinyAR

        return TinyAR.load(base, **settings)
    if name in BACKBONES:
        from asgkit.backbones.tiny.latent_drawing import TinyLatent

        return TinyLatent.load(name, base, **settings)
    raise ValueError(f"unknown backbone {name!r}; this version knows {', '.join(map(repr, (*BACKBONES, *REAL)))}, and "
                     "my_module:MyModel for a class of your own")


def _load_own(name: str, base: str, settings: dict[str, Any]) -> Backbone:
    """A backbone from outside the package, by `module:Class`."""
    where, _, what = name.partition(":")
    if not all(part.isidentifier() for part in (*where.split("."), what)):
        raise ValueError(f"backbone {name!r} must be of the form my_package.my_module:MyModel")
    try:
        module = import_module(where)
    except ModuleNotFoundError as error:
        if not f"{where}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise ValueError(f"backbone {name}: Python finds no module {error.name}; install it, or start with "
                         "PYTHONPATH=FOLDER, the folder that holds it") from error
    if what not in vars(module):
        raise ValueError(f"backbone {name}: module {where} has no {what}")
    opened = vars(module)[what].load(base, **settings)
    if not isinstance(opened, Backbone):
        raise ValueError(  # noqa: TRY004  # a setting is wrong, not a call
            f"backbone {name}: what its load returns is no Backbone; asgkit.backbones.base lists the methods, and "
            "asgkit.backbones.reader.Reader is a start")
    return opened

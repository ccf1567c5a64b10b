"""The protocol between the method and a unified multimodal model: ten batched methods and their data classes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor, nn

from asgkit.backbones.prompts import Prompts

Role = Literal["proposer", "solver", "generator"]
BACKBONES = ("tiny-ar", "tiny-flow", "tiny-diffusion")  # shipped with their weights
REAL = {"janus": "Janus", "blip3o": "Blip3o", "bagel": "Bagel", "vargpt": "Vargpt"}  # module: its class
ROLES: tuple[Role, ...] = ("proposer", "solver", "generator")


class NativeSampling(NamedTuple):
    """How a model draws where neither guidance nor temperature is given: what its authors publish."""

    guidance: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0


PLAIN = NativeSampling()


@dataclass(frozen=True)
class BackboneSpec:
    """What the trainer may know of a model.

    paradigm: how it draws; image_side: side in pixels of the square images it reads and draws; code_shape: shape of
    one drawing's codes (tokens) or latent; vocabulary: size of the text vocabulary; max_new_tokens: longest text;
    times: how its pre-training drew the times of a regression loss (`none` for tokens). native: how it draws by itself.
    predicts: of a flow, what `GenStats.pred` and `target` stand for, clean latents or velocities. world: the procedural
    world whose benchmarks fit it (`asgkit.evals.worlds`), nothing that the trainer reads.
    """

    name: str
    paradigm: Literal["autoregressive", "flow", "diffusion"]
    image_side: int
    code_shape: tuple[int, ...]
    vocabulary: int
    max_new_tokens: int
    prompts: Prompts
    times: Literal["none", "logit_normal", "uniform"] = "none"
    native: NativeSampling = PLAIN
    predicts: Literal["clean", "velocity"] = "clean"
    world: str = "shapes"

    @property
    def draws_tokens(self) -> bool:
        """Whether a drawing is tokens with log-probabilities; else it is what a regression removes noise from."""
        return self.paradigm == "autoregressive"

    @property
    def has_velocity(self) -> bool:
        """Whether a regression follows a velocity from noise to drawing."""
        return self.paradigm == "flow"


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
    logits: (R, K, V) float32, raw (before temperature and top-p), of the first K tokens; None unless asked for.
    starts (R,): the first token after an opening `<answer>` tag, 0 without one; None: no text has a tag."""

    texts: list[str]
    ids: Tensor
    mask: Tensor
    logp: Tensor
    logits: Tensor | None = None
    starts: Tensor | None = None


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

"""Checkpoints of the tiny models, and how they read: the hooks of `Reader` over one small trunk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from asgkit.backbones.base import BackboneSpec
from asgkit.backbones.reader import KeyValues, Reader
from asgkit.backbones.tiny.codes import to_tensor
from asgkit.backbones.tiny.tokenizer import WordTokenizer

CHECKPOINTS = Path(__file__).parent / "checkpoints"
TRUNK_TARGETS = r".*trunk\.blocks\.\d+\.(qkv|o|f1|f2)"  # modules that carry a reader's adapter; the stem has none


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


class TinyUnderstanding(Reader):
    """Reading for the tiny models; the subclass owns `network` (with `see`, `read`, `word_head`) and draws."""

    def __init__(self, network: nn.Module, words: list[str], spec: BackboneSpec, **settings: Any) -> None:
        super().__init__(network, WordTokenizer(words), spec, **settings)

    def see(self, images: Sequence[Image.Image]) -> KeyValues:
        """Keys and values of 24x24 pictures."""
        return self.network.see(to_tensor(images).to(self.device))

    def read(self, ids: Tensor, mask: Tensor, past: KeyValues | None, past_mask: Tensor | None, start: Tensor
             ) -> tuple[Tensor, KeyValues]:
        """A causal pass of the trunk; see `Reader.read`."""
        return self.network.read(ids, mask, past, past_mask, start)

    def word_logits(self, hidden: Tensor) -> Tensor:
        """Logits over the tiny vocabulary."""
        return self.network.word_head(hidden)


def network_settings(meta: dict[str, str]) -> tuple[dict, list[str], dict]:
    """Sizes, vocabulary and pre-training settings stored in a checkpoint's metadata."""
    return json.loads(meta["network"]), json.loads(meta["words"]), json.loads(meta["pretrain"])

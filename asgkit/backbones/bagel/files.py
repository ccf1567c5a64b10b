"""From files to a network and its adapters: the published folder, a tiny random instance, released ASG adapters."""

from __future__ import annotations

import json
import pickle
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from asgkit.backbones.bagel.autoencoder import read_autoencoder
from asgkit.backbones.bagel.config import FULL, DrawingSizes, read_sizes, tiny_sizes
from asgkit.backbones.bagel.network import BagelNetwork
from asgkit.backbones.base import ROLES
from asgkit.backbones.chat import PHRASES, phrase_tokenizer
from asgkit.backbones.weights import UnmatchedTensors, fill, require_files, stream

SOURCE = ("ByteDance-Seed/BAGEL-7B-MoT (Apache-2.0 by the README of its code; the model card, and the licence of the "
          "FLUX autoencoder in ae.safetensors, not verified)")
FILES = {
    "ema.safetensors": "weights of language model, image encoder and connectors (bf16, about 29 GB)",
    "ae.safetensors": "autoencoder between pictures and latents (fp32, about 0.3 GB)",
    "llm_config.json": "sizes of the language model",
    "vit_config.json": "sizes of the image encoder",
    "tokenizer.json": "words",
}
PAD, START, END, LOOK, LOOKED = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>",
                                           "<|vision_end|>")
WEIGHTS_SEED = 0  # of the tiny instance: one base whatever the run's seed is


def load_folder(folder: Path, drawing: DrawingSizes, device: str | torch.device, dtype: torch.dtype
                ) -> tuple[BagelNetwork, PreTrainedTokenizerBase]:
    """Network and tokenizer of a folder with the files of `FILES`; reads nothing else and no network.

    Raises FileNotFoundError with the missing files, UnmatchedTensors unless files and network agree tensor by tensor.
    Weights go to `device` one by one, so that no second copy of the model is ever in memory.
    """
    require_files(folder, list(FILES), SOURCE)
    with torch.device("meta"):
        network = BagelNetwork(read_sizes(folder, drawing))
    network.set_precision(dtype)
    network.to_empty(device=device)
    pictures = read_autoencoder(folder / "ae.safetensors", drawing)
    fill(network, chain(stream([folder / "ema.safetensors"]),
                        ((f"autoencoder.{name}", tensor) for name, tensor in pictures)))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    if missing := [text for text in SPECIAL if text not in tokenizer.get_vocab()]:
        raise ValueError(f"{folder / 'tokenizer.json'} lacks {', '.join(missing)}: copy it again from {SOURCE}")
    return network, tokenizer


def random_instance(device: str | torch.device, dtype: torch.dtype) -> tuple[BagelNetwork, PreTrainedTokenizerBase]:
    """A tiny network with seeded random weights and a tokenizer whose tokens include whole questions and answers."""
    tokenizer = phrase_tokenizer(SPECIAL)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(WEIGHTS_SEED)
        network = BagelNetwork(tiny_sizes(len(tokenizer)))
    likely = tokenizer.convert_tokens_to_ids([END, *PHRASES])
    with torch.no_grad():
        network.language_model.lm_head.weight[likely] *= 5  # phrases and the end win over single bytes
    network.set_precision(dtype)
    return network.to(device), tokenizer


def full_size() -> BagelNetwork:
    """The published network without memory (device `meta`), to count its parameters."""
    with torch.device("meta"):
        return BagelNetwork(FULL)


def convert_released(source: Path, target: Path) -> None:
    """Turn released ASG adapters into this kit's: `role_<role>.pt` in `source` to `target/<role>/adapter.safetensors`.

    A file holds `{role, adapter_name, state_dict}` with peft's names,
    `base_model.model.model.layers.N.<module>.lora_A.<adapter>.weight`. Read with `weights_only=True`, so no code in a
    file is run. Raises FileNotFoundError for a missing role, ValueError for a file of another kind, UnmatchedTensors
    for names of another form. Source: spec: backbones 5.
    """
    require_files(source, [f"role_{role}.pt" for role in ROLES], "a released `step_*_lora` folder")
    for role in ROLES:
        path = source / f"role_{role}.pt"
        try:
            payload = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path} holds more than tensors, so it is not read: {error}") from error
        if not isinstance(payload, dict) or not {"role", "adapter_name", "state_dict"} <= payload.keys():
            raise ValueError(f"{path} is no released role file: it must hold role, adapter_name and state_dict")
        if payload["role"] != role:
            raise ValueError(f"{path} holds the role {payload['role']!r}")
        (target / role).mkdir(parents=True, exist_ok=True)
        save_file(_kit_names(path, payload["state_dict"], payload["adapter_name"]),
                  target / role / "adapter.safetensors")
    (target / "source.json").write_text(json.dumps({"released": source.name}) + "\n")


def _kit_names(path: Path, state: dict[str, torch.Tensor], adapter: str) -> dict[str, torch.Tensor]:
    head, marker = "base_model.model.", f".{adapter}."
    if foreign := [name for name in state if not (name.startswith(head) and marker in name)]:
        raise UnmatchedTensors(f"{path} holds {len(foreign)} tensors that are not of its adapter {adapter!r}: "
                               + ", ".join(sorted(foreign)[:8]))
    short = lambda name: "language_model." + name.removeprefix(head).replace(marker, ".")
    return {short(name): tensor.float().contiguous() for name, tensor in state.items()}

"""Frozen weights in 4 bits (QLoRA): every linear layer that carries an adapter becomes its NF4 twin, by bitsandbytes.

    W_nf4 = nearest of 16 levels of a normal distribution x the largest |w| of its block of 64 weights

and the block scales are quantised again (double quantisation), as in QLoRA (arXiv 2305.14314). A layer computes with
the weights that these 4 bits stand for, so "the frozen base" of a quantised run, its reference for the KL included, is
the quantised one. Adapters stay fp32.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable

import torch
from torch import nn


def can_quantise() -> bool:
    """Whether bitsandbytes, an optional library, is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def quantise_linears(network: nn.Module, targets: Iterable[str], compute: torch.dtype | None = None) -> list[str]:
    """Replace the linear layers whose full name matches one of `targets`; returns their names.

    compute: the type that a layer computes in; None: that of its weights. Raises ValueError when bitsandbytes is not
    installed, or when no layer matches.
    """
    if not can_quantise():
        raise ValueError("lora.quantise=nf4 needs bitsandbytes: pip install 'bitsandbytes>=0.50,<0.51'")
    patterns = [re.compile(target) for target in targets]
    names = [name for name, layer in network.named_modules()
             if type(layer) is nn.Linear and any(pattern.fullmatch(name) for pattern in patterns)]
    if not names:
        raise ValueError(f"no linear layer of {type(network).__name__} carries an adapter, so none can be quantised")
    for name in names:
        parent, _, last = name.rpartition(".")
        owner = network.get_submodule(parent)
        setattr(owner, last, _nf4(getattr(owner, last), compute))
    network.is_loaded_in_4bit = True  # peft asks for this name before it treats a layer as 4-bit
    return names


def _nf4(layer: nn.Linear, compute: torch.dtype | None) -> nn.Module:
    """The 4-bit twin of a linear layer, on the same device."""
    import bitsandbytes as bnb

    twin = bnb.nn.Linear4bit(layer.in_features, layer.out_features, bias=layer.bias is not None,
                             compute_dtype=compute or layer.weight.dtype, quant_type="nf4", device="meta")
    twin.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    if layer.bias is not None:
        twin.bias = nn.Parameter(layer.bias.data, requires_grad=False)
    # On processors with AVX512-BF16 the first pass without a gradient would pack the weights for good, in a form that
    # later passes with a gradient cannot differentiate: they would be wrong without a word.
    twin.support_avx512bf16_for_cpu = False
    return twin.to(layer.weight.device).eval()

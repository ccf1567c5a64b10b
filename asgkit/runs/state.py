"""Optimisers and random generators as tensors and plain values, exactly, and back: no pickle.

A checkpoint is a flat dictionary of tensors with prefixed names ("optimizer/solver/3/exp_avg") and a JSON
dictionary. `pack` and `unpack` add and remove the prefixes; the other functions convert both ways.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]
Generators = Mapping[str, torch.Generator | np.random.Generator]


class StateMismatch(ValueError):
    """A saved state does not fit the optimiser, generators or devices it is restored into."""


def pack(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Put `prefix/` before every name."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def unpack(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Select the tensors below `prefix/` and take the prefix off; empty if there are none."""
    start = f"{prefix}/"
    return {name[len(start):]: tensor for name, tensor in tensors.items() if name.startswith(start)}


def private_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous CPU copy that shares storage with nothing."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """Return an optimiser's whole state as tensors ("3/exp_avg" of parameter 3) and plain values.

    The step counts are among them, so AdamW's bias correction goes on where it was. Raises TypeError if the
    state or a hyper-parameter is neither a tensor nor plain data. Source: spec "anchors C4".
    """
    state = optimizer.state_dict()
    tensors: Tensors = {}
    numbers: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}/{name}"] = private_copy(value)
            else:
                numbers[f"{index}/{name}"] = _plain(value, name)
    groups = [{name: _plain(value, name) for name, value in group.items()} for group in state["param_groups"]]
    return tensors, {"groups": groups, "numbers": numbers}


def _plain(value: Any, name: str) -> Any:
    """Pass plain data through; JSON has no tuple, so tuples are marked to come back as tuples."""
    if isinstance(value, tuple):
        return {"tuple": [_plain(item, name) for item in value]}
    if isinstance(value, list):
        return [_plain(item, name) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot save optimiser value {name!r} of type {type(value).__name__}; use a number")


def _from_plain(value: Any) -> Any:
    """Undo `_plain`."""
    return tuple(_from_plain(item) for item in value["tuple"]) if isinstance(value, dict) else value


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor],
                      values: Mapping[str, Any]) -> None:
    """Put back what `optimizer_state` returned, into an optimiser over the same parameters in the same order.

    Raises StateMismatch if the parameter groups have other sizes or a state tensor has another shape than
    its parameter.
    """
    groups = [{name: _from_plain(value) for name, value in group.items()} for group in values["groups"]]
    sizes, wanted = [[len(g["params"]) for g in gs] for gs in (groups, optimizer.param_groups)]
    if sizes != wanted:
        raise StateMismatch(f"saved optimiser has parameter groups of {sizes}, this one has {wanted}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **values["numbers"]}.items():
        index, name = key.split("/", 1)
        shape = parameters[int(index)].shape
        # Scalars such as the step count have no shape to compare.
        if isinstance(value, torch.Tensor) and value.ndim and value.shape != shape:
            raise StateMismatch(f"{key} has shape {tuple(value.shape)}, its parameter {tuple(shape)}")
        # A copy, or the optimiser would update the loaded checkpoint in place.
        state.setdefault(int(index), {})[name] = value.clone() if isinstance(value, torch.Tensor) else value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def rng_state(generators: Generators) -> tuple[Tensors, dict[str, Any]]:
    """Return the state of every source of randomness as tensors and plain values.

    Covers Python's `random`, numpy's legacy global, torch on the CPU, torch on all CUDA devices once CUDA is
    in use, and the named private generators (torch or numpy). Restoring it with `restore_rng` makes each
    continue with the number it would have drawn next. Raises TypeError on another kind of generator.
    """
    tensors: Tensors = {"torch/cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        tensors |= {f"torch/cuda/{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    version, words, gauss = random.getstate()
    private: dict[str, Any] = {}
    for name, generator in generators.items():
        if isinstance(generator, torch.Generator):
            tensors[f"private/{name}"] = generator.get_state()
        elif isinstance(generator, np.random.Generator):
            private[name] = _encode(generator.bit_generator.state)
        else:
            kind = type(generator).__name__
            raise TypeError(f"generator {name!r} is a {kind}; give a torch or numpy Generator")
    python = {"version": version, "words": list(words), "gauss": gauss}
    numpy = _encode(np.random.get_state(legacy=False))
    return tensors, {"python": python, "numpy": numpy, "private": private}


def restore_rng(generators: Generators, tensors: Mapping[str, torch.Tensor],
                values: Mapping[str, Any]) -> None:
    """Put back what `rng_state` returned; the private generators must have the same names.

    Raises StateMismatch if names or CUDA devices are missing, naming them. Nothing is changed then.
    """
    saved = set(unpack("private", tensors)) | set(values["private"])
    if saved != set(generators):
        raise StateMismatch(f"saved generators {sorted(saved)}, given generators {sorted(generators)}")
    cuda = unpack("torch/cuda", tensors)
    if len(cuda) > torch.cuda.device_count():
        raise StateMismatch(f"saved on {len(cuda)} CUDA device(s), {torch.cuda.device_count()} here: an "
                            "exact resume needs as many; start a new run from the role weights instead")
    for name, generator in generators.items():
        if isinstance(generator, torch.Generator):
            generator.set_state(tensors[f"private/{name}"])
        else:
            generator.bit_generator.state = _decode(values["private"][name])
    python = values["python"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    np.random.set_state(_decode(values["numpy"]))
    torch.set_rng_state(tensors["torch/cpu"])
    for index, state in cuda.items():
        torch.cuda.set_rng_state(state, int(index))


def _encode(value: Any) -> Any:
    """Turn a numpy bit-generator state into JSON; integers of any size and float64 are exact there."""
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    return value.item() if isinstance(value, np.generic) else value


def _decode(value: Any) -> Any:
    """Undo `_encode`."""
    if not isinstance(value, dict):
        return value
    if value.keys() == {"array", "dtype"}:
        return np.array(value["array"], dtype=value["dtype"])
    return {key: _decode(item) for key, item in value.items()}

"""Weights from a folder into a module, with every tensor accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn


class UnmatchedTensors(KeyError):
    """A file and a module do not hold the same tensors; the message lists which."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show it quoted, on one line


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New tensors are of `dtype` inside the block: a network is built in its final precision at once."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def require_files(folder: Path, names: Sequence[str], where: str) -> None:
    """Raise FileNotFoundError that lists every missing file of a model folder and where it comes from (`where`)."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: put the files of {where} there, or set base=random for a tiny "
                                "instance with random weights")
    missing = [name for name in names if not any(folder.glob(name))]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: copy them from {where}")


def stream(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of safetensors files, one tensor in memory at a time; a damaged file raises by its name."""
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise SafetensorError(f"{path}: {error}; copy the file again") from error


def fill(module: nn.Module, tensors: Iterable[tuple[str, Tensor]],
         rename: Callable[[str], str | None] = lambda name: name) -> int:
    """Copy tensors into a module's parameters and persistent buffers; returns how many were copied.

    rename: a file's name to the module's, or None for a tensor that belongs to another part of the model.
    Raises UnmatchedTensors unless names and shapes agree one to one. Parameters that share memory (tied weights) may
    be given by any one of their names.
    """
    own = module.state_dict(keep_vars=True)
    filled: set[int] = set()
    unexpected, misshapen, count = [], [], 0
    for name, tensor in tensors:
        target = rename(name)
        if target is None:
            continue
        if target not in own:
            unexpected.append(name)
        elif own[target].shape != tensor.shape:
            misshapen.append(f"{name} {tuple(tensor.shape)} for {tuple(own[target].shape)}")
        else:
            with torch.no_grad():
                own[target].copy_(tensor)
            filled.add(own[target].data_ptr())
            count += 1
    missing = [name for name, tensor in own.items() if tensor.data_ptr() not in filled]
    _complain(type(module).__name__, missing, unexpected, misshapen)
    return count


def _complain(module: str, missing: list[str], unexpected: list[str], misshapen: list[str]) -> None:
    found = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    lines = [f"{len(names)} {what}: {', '.join(sorted(names)[:8])}{' ...' if len(names) > 8 else ''}"
             for what, names in found.items() if names]
    if lines:
        raise UnmatchedTensors(f"the weights do not fit {module}; " + "; ".join(lines)
                               + ". Check that the folder holds this model and this version of it")

"""Open a backbone by name: a shipped one, a real one, or a class of one's own."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from asgkit.backbones.base import BACKBONES, REAL, Backbone


def load_backbone(name: str, *, base: str = "clean", lora_rank: int = 8, lora_alpha: int = 16,
                  lora_dropout: float = 0.0, seed: int = 0, device: str | torch.device = "cpu",
                  precision: str = "fp32", quantise: str = "") -> Backbone:
    """Open a backbone by name with fresh role adapters (LoRA B is zero, so each role starts as the base).

    name: a shipped or a real one, or `my_package.my_module:MyModel`, a class of your own that Python can import; it
    is opened by `MyModel.load(base, rank=, alpha=, dropout=, seed=, device=, precision=)`.
    base: of the tiny models which shipped checkpoint (`clean`, `registers`) or a path to one; of the real ones the
    folder with their weights, or `random` for a tiny instance of their architecture; a class of your own gets it as
    it is.
    quantise: `nf4` for frozen weights in 4 bits (`asgkit.backbones.quantise`); a class of your own gets it only then.
    Raises ValueError for unknown names, for a class that cannot be imported or is no backbone, and for a real
    model without a base.
    """
    settings = {"rank": lora_rank, "alpha": lora_alpha, "dropout": lora_dropout, "seed": seed, "device": device,
                "precision": precision, **({"quantise": quantise} if quantise else {})}
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


def import_own(name: str, what: str, example: str) -> type:
    """A class from outside the package, by `my_package.my_module:MyClass`; `what` and `example` are for the errors.

    Raises ValueError for another form, a module that Python does not find, or one that has no such class.
    """
    where, _, kind = name.partition(":")
    if not all(part.isidentifier() for part in (*where.split("."), kind)):
        raise ValueError(f"{what} {name!r} must be of the form my_package.my_module:{example}")
    try:
        module = import_module(where)
    except ModuleNotFoundError as error:
        if not f"{where}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise ValueError(f"{what} {name}: Python finds no module {error.name}; install it, or start with "
                         "PYTHONPATH=FOLDER, the folder that holds it") from error
    if kind not in vars(module):
        raise ValueError(f"{what} {name}: module {where} has no {kind}")
    return vars(module)[kind]


def _load_own(name: str, base: str, settings: dict[str, Any]) -> Backbone:
    """A backbone from outside the package, by `module:Class`."""
    opened = import_own(name, "backbone", "MyModel").load(base, **settings)
    if not isinstance(opened, Backbone):
        raise ValueError(  # noqa: TRY004  # a setting is wrong, not a call
            f"backbone {name}: what its load returns is no Backbone; asgkit.backbones.base lists the methods, and "
            "asgkit.backbones.reader.Reader is a start")
    return opened

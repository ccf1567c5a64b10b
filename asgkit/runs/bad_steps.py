"""Bad (non-finite) steps: NaN and Inf are found before they reach an optimiser, since clipping passes NaN on.

The batch is dumped, the step is skipped, and a streak of such steps ends the run.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from asgkit.errors import NonFiniteValue, TrainingAborted


class BadStepGuard:
    """Count skipped updates, dump their batches, and end the run after more than `limit` in a row.

    One bad batch is bad luck and must not end a run of days; an unbroken streak means that the weights or
    the settings are broken, and going on would only waste the machine.
    """

    def __init__(self, limit: int = 5) -> None:
        self.limit = limit
        self.total = 0
        self.streak: list[str] = []
        self._names: set[str] = set()

    @staticmethod
    def check_finite(name: str, value: torch.Tensor | float) -> None:
        """Raise NonFiniteValue(name) if a number, or any element of a tensor of any shape, is NaN or Inf."""
        if isinstance(value, torch.Tensor):
            bad = int((~torch.isfinite(value)).sum())
            if bad:
                raise NonFiniteValue(name, f"{bad} of {value.numel()} elements, shape {tuple(value.shape)}")
        elif not math.isfinite(value):
            raise NonFiniteValue(name, str(value))

    def skipped(self, step: int, reason: str, batch: dict[str, Any], dump_dir: Path) -> Path:
        """Count a skipped update and dump its batch to `dump_dir/bad_batches/step_N.json`.

        Tensors and arrays of the batch go to a safetensors file beside it (NaN kept as it is). A second skip
        in the same step gets `step_N_2`; a dump left by an earlier, interrupted attempt is overwritten.

        Raises TrainingAborted when more than `limit` updates in a row were skipped, TypeError when the batch
        holds something that is neither a tensor, an array nor plain data. Returns the path of the JSON file.
        """
        name = self._dump_name(step)
        path = Path(dump_dir) / "bad_batches" / f"{name}.json"
        _dump(path, {"step": step, "reason": reason, "batch": batch})
        self.total += 1
        self.streak.append(f"bad_batches/{path.name}")
        if len(self.streak) > self.limit:
            raise TrainingAborted(self._advice(step, reason))
        return path

    def ok(self) -> None:
        """Reset the streak after an update that was applied."""
        self.streak = []

    def state_dict(self) -> dict[str, Any]:
        """Return the counters as plain data, for the checkpoint."""
        return {"total": self.total, "streak": list(self.streak)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the counters back from `state_dict`."""
        self.total, self.streak = int(state["total"]), list(state["streak"])

    def _dump_name(self, step: int) -> str:
        name, copy = f"step_{step:06d}", 1
        while name in self._names:
            copy += 1
            name = f"step_{step:06d}_{copy}"
        self._names.add(name)
        return name

    def _advice(self, step: int, reason: str) -> str:
        return (f"stopped at step {step}: {len(self.streak)} updates in a row were skipped "
                f"(limit {self.limit}), the last because: {reason}. "
                f"The batches are in the run directory: {', '.join(self.streak)}. "
                "Try, in this order: look at the first dump; lower the learning rate tenfold; clip gradients "
                "harder; compute in float32; resume from an older checkpoint, since the newest may hold "
                "weights that are already broken.")


def _plain(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Turn nested data into strict JSON, moving tensors into `tensors` under their path `name`."""
    if isinstance(value, dict):
        return {str(key): _plain(item, f"{name}/{key}".lstrip("/"), tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        # A copy each: safetensors refuses tensors which share storage.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name, "shape": list(value.shape), "dtype": str(value.dtype)}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # strict JSON has no NaN, and it is just what the reader of a dump looks for
    if value is None or isinstance(value, str | int | float | bool):
        return value
    kind = type(value).__name__
    raise TypeError(f"cannot dump {name!r} of type {kind}: pass tensors, arrays or plain data")


def _dump(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as JSON, and its tensors, if any, as safetensors of the same name."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_plain(content, "", tensors), indent=1, allow_nan=False, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    if tensors:
        save_file(tensors, path.with_suffix(".safetensors"))

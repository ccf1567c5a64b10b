"""VARGPT-v1.1 (7B + 2B): Qwen2-VL that reads, and a next-scale head over bits that draws."""

from asgkit.backbones.vargpt.model import ROLE_TARGETS, Vargpt
from asgkit.backbones.vargpt.network import FILES, SOURCE, full_size
from asgkit.backbones.vargpt.released import load_released

__all__ = ["FILES", "ROLE_TARGETS", "SOURCE", "Vargpt", "full_size", "load_released"]

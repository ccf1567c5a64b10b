"""BAGEL-7B-MoT: one transformer with weights for understanding and weights for drawing, and shared attention."""

from asgkit.backbones.bagel.config import DrawingSizes, Sampling
from asgkit.backbones.bagel.files import FILES, SOURCE, convert_released, full_size
from asgkit.backbones.bagel.model import ROLE_TARGETS, TARGETS, Bagel

__all__ = ["FILES", "ROLE_TARGETS", "SOURCE", "TARGETS", "Bagel", "DrawingSizes", "Sampling", "convert_released",
           "full_size"]

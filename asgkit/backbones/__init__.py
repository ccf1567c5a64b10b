"""Unified multimodal models behind one protocol; `load_backbone` opens one by name."""

from asgkit.backbones.base import (
    ROLES,
    Answers,
    Backbone,
    BackboneSpec,
    Drawings,
    GenStats,
    NoiseSpec,
    Prefix,
    Role,
    TextStats,
)
from asgkit.backbones.loading import load_backbone

__all__ = [
    "ROLES", "Answers", "Backbone", "BackboneSpec", "Drawings", "GenStats", "NoiseSpec", "Prefix", "Role",
    "TextStats", "load_backbone",
]

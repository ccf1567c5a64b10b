"""BLIP3o-8B behind the protocol, from transformers and diffusers parts; pixels and EVA-CLIP where their files are."""

from asgkit.backbones.blip3o.backbone import ROLE_TARGETS, Blip3o
from asgkit.backbones.blip3o.parts import FILES, SOURCE, full_size

__all__ = ["FILES", "ROLE_TARGETS", "SOURCE", "Blip3o", "full_size"]

"""Janus-Pro: one decoder that reads SigLIP features and draws VQ codes."""

from asgkit.backbones.janus.model import FILES, ROLE_TARGETS, SOURCE, Janus, full_size

__all__ = ["FILES", "ROLE_TARGETS", "SOURCE", "Janus", "full_size"]

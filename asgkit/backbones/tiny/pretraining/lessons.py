"""What teaches a tiny base in pre-training: the labelled world that its configuration names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from asgkit.backbones.tiny.pretraining.data import Sampler
from asgkit.backbones.tiny.pretraining.scene_data import SceneSampler
from asgkit.scenes import text as scene_text
from asgkit.scenes import world as scene_world
from asgkit.shapes import text as shape_text
from asgkit.shapes import world as shape_world


@dataclass(frozen=True)
class Lessons:
    """Scenes of a split, their pictures (24, 24, 3) uint8, the captions they may be drawn from (one more often: twice),
    and the sampler of batches."""

    sample_scene: Callable[[np.random.Generator, str], Any]
    render: Callable[[Any], np.ndarray]
    captions: Callable[[Any], list[str]]
    sampler: type


def _shape_captions(scene: shape_world.Scene) -> list[str]:
    return [shape_text.caption(scene, style) for style in shape_text.caption_styles(scene)]


def _scene_captions(scene: scene_world.Scene) -> list[str]:
    """Relations and counts twice: few scenes allow them, and they are slow to learn."""
    styles = scene_text.caption_styles(scene)
    return [scene_text.caption(scene, style) for style in (*styles, *(s for s in styles if s in ("relation", "count")))]


LESSONS = {
    "shapes": Lessons(shape_world.sample_scene, shape_world.render, _shape_captions, Sampler),
    "scenes": Lessons(scene_world.sample_scene, scene_world.render, _scene_captions, SceneSampler),
}

"""What teaches a tiny base in pre-training: the labelled world that its configuration names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from asgkit.backbones.tiny.data import Sampler
from asgkit.backbones.tiny.scene_data import SceneSampler
from asgkit.scenes import text as scene_text
from asgkit.scenes import world as scene_world
from asgkit.shapes import text as shape_text
from asgkit.shapes import world as shape_world


@dataclass(frozen=True)
class Lessons:
    """Scenes of a split, their pictures (24, 24, 3) uint8, their captions by style, and the sampler of batches."""

    sample_scene: Callable[[np.random.Generator, str], Any]
    render: Callable[[Any], np.ndarray]
    caption: Callable[[Any, str], str]
    caption_styles: Callable[[Any], list[str]]
    sampler: type


LESSONS = {
    "shapes": Lessons(shape_world.sample_scene, shape_world.render, shape_text.caption, shape_text.caption_styles,
                      Sampler),
    "scenes": Lessons(scene_world.sample_scene, scene_world.render, scene_text.caption, scene_text.caption_styles,
                      SceneSampler),
}

"""Which settings a recipe reads: one that it does not read is refused, since setting it would change nothing."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from asgkit.errors import ConfigError

DEFAULT_RECIPE = "asg"
# Read whatever the recipe is: by the trainer, the optimisers and what opens a run.
EVERY = ("preset", "recipe", "backbone", "base", "seed", "device", "precision", "control", "max_bad_steps",
         "shard_weights", "pool.*", "schedule.steps", "schedule.images", "schedule.accumulate",
         "schedule.micro_batch", "kl.*", "lora.*", "optimiser.*", "checkpoint.*")
# Read by a recipe that draws groups from prompts and moves the Generator towards the better ones.
GROUPS = ("generator.train", "generator.candidates", "generator.prompt", "generator.caption_temperature",
          "generator.temperature", "generator.guidance", "generator.learning_rate", "generator.clip",
          "generator.regression", "generator.center", "generator.reward_temperature", "generator.nft_beta",
          "generator.regression_space", "generator.noise_draws", "generator.scorer")
READS: dict[str, tuple[str, ...]] = {
    "asg": ("schedule.*", "proposer.*", "solver.*", "generator.*", "replay.*"),
    "gvu": ("gvu.*", *GROUPS),
}


def reads(recipe: str, key: str) -> bool:
    """Whether a recipe reads a setting; a class of one's own may read any."""
    return ":" in recipe or any(fnmatchcase(key, pattern) for pattern in (*EVERY, *READS.get(recipe, ("*",))))


def refuse_unread(recipe: str, chosen: Iterable[str]) -> None:
    """Raise ConfigError for the first setting that was chosen and that the recipe does not read."""
    for key in chosen:
        if not reads(recipe, key):
            others = [name for name in READS if reads(name, key)]
            where = f"it is read by recipe={' or '.join(others)}" if others else "it is read by a recipe of your own"
            raise ConfigError(f"{key} changes nothing under recipe={recipe}: {where}")

"""One generation round: the numbers of the trainer's own stages 1 to 4, and nothing read twice."""

from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from loops import open_trainer, small_config

from asgkit.backbones import load_backbone
from asgkit.launch import open_backbone
from asgkit.pool.folder import ImagePool
from asgkit.recipes.base import CAPTION, DIAGNOSE, DRAW, STYLE
from asgkit.stages.generation import STAGES, generation_round

STREAMS = {"style": STYLE, "caption": CAPTION, "diagnose": DIAGNOSE, "draw": DRAW}
AS_RELEASED = {"generator.prompt": "proposer", "generator.references": "proposer"}


@pytest.mark.parametrize("changes", [{}, AS_RELEASED, {"generator.scorer": "frozen"}, {"backbone": "tiny-flow"}],
                         ids=lambda changes: "-".join(map(str, changes.values())) or "plain")
def test_a_round_is_what_the_trainer_does_before_its_update(pool_folder: Path, tmp_path: Path, changes: dict) -> None:
    config = small_config(pool_folder, {"schedule.understanding": 0, **changes})
    records = open_trainer(config, tmp_path / "run").train_step()
    backbone = open_backbone(config)
    images = ImagePool(config.pool.path, size=24, seed=config.seed).next_batch(3)
    scorer = (backbone, None) if config.generator.scorer == "frozen" else None
    made = generation_round(backbone, [item.image for item in images], config, scorer=scorer,
                            streams=lambda use: np.random.default_rng([config.seed, 1, STREAMS[use]]))
    assert len(records) == len(made.cards) == len(made.groups) == 3
    for i, (record, card) in enumerate(zip(records, made.cards, strict=True)):
        assert record["generator/seeds"] == made.seeds[3 * i : 3 * i + 3]
        assert (record["prompt"], record["references"]) == (card.prompt, [v.majority for v in card.references])
        assert record["generator/rewards"] == pytest.approx(made.scores.reward[i].tolist(), abs=1e-6)  # rounded there
        assert record["generator/captions"] == made.scores.captions[i]
        assert made.prompts[3 * i : 3 * i + 3] == [backbone.spec.prompts.draw.format(caption=card.prompt)] * 3
        assert made.groups[i] == made.drawn.images[3 * i : 3 * i + 3]


class Counting:
    """A backbone that counts its prefixes by role and number of pictures."""

    def __init__(self, backbone) -> None:
        self.inner, self.spec, self.prefixes = backbone, backbone.spec, Counter()

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def prefix(self, images, *, role):
        self.prefixes[role, len(images)] += 1
        return self.inner.prefix(images, role=role)


def test_streams_and_stages_come_in_order_and_prefixes_are_shared(pool_folder: Path, pictures, tiny) -> None:
    config, asked, passed = small_config(pool_folder), [], []

    def streams(use: str) -> np.random.Generator:
        asked.append(use)
        return np.random.default_rng(0)

    @contextmanager
    def stage(name: str):
        passed.append(name)
        yield

    counting = Counting(tiny)
    generation_round(counting, pictures[:2], config, streams, stage=stage)
    assert asked == list(STREAMS) and passed == list(STAGES)
    # the Solver's prefix serves captions and references, one more its look at all 2 x 3 drawings
    assert counting.prefixes == {("solver", 2): 1, ("proposer", 2): 1, ("solver", 6): 1}


def test_another_scorer_reads_the_pictures_itself(pool_folder: Path, pictures, tiny) -> None:
    config, judge = small_config(pool_folder), Counting(load_backbone("tiny-ar", base="registers"))
    generation_round(tiny, pictures[:2], config, lambda _: np.random.default_rng(0), scorer=(judge, None))
    assert judge.prefixes == {(None, 2): 1, (None, 6): 1}


def test_one_generator_for_all_uses_repeats_exactly(pool_folder: Path, pictures, tiny) -> None:
    config = small_config(pool_folder)
    generators = [np.random.default_rng(4) for _ in range(2)]
    once, again = (generation_round(tiny, pictures[:2], config, lambda _, rng=rng: rng) for rng in generators)
    assert once.seeds == again.seeds and once.scores.reward.tolist() == again.scores.reward.tolist()
    assert len(set(once.seeds)) == 6

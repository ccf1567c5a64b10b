"""The naive mode computes what the batched mode computes; only its speed differs."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from asgkit.backbones import NoiseSpec, load_backbone
from asgkit.experiments.bench import NaiveBackbone, bench_config, new_trainer, run_bench
from asgkit.shapes.world import render_pool

SMALL = ["schedule.images=3", "generator.candidates=2", "generator.votes=2", "solver.framings=3", "device=cpu",
         "precision=fp32"]
GREEDY = ["proposer.temperature=0", "solver.temperature=0", "generator.min_questions=1"]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_pool(tmp_path_factory.mktemp("pool"), 6)


@pytest.fixture(scope="module")
def pair():
    batched = load_backbone("tiny-ar")
    return batched, NaiveBackbone(batched)


@pytest.fixture(scope="module")
def images(pool: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(pool.iterdir())]


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert torch.allclose(a.float(), b.float(), atol=2e-4), (a.float() - b.float()).abs().max()


def test_answers_are_the_same_and_padded_alike(pair, images) -> None:
    prompts = [pair[0].spec.prompts.captions[0], pair[0].spec.prompts.ask, pair[0].spec.prompts.captions[2]]
    one, other = (b.answer(b.prefix(images, role="solver"), prompts, rows=[4, 0, 4], max_new_tokens=20, keep_logits=2)
                  for b in pair)
    assert one.texts == other.texts and torch.equal(one.mask, other.mask)
    assert torch.equal(one.ids * one.mask, other.ids * other.mask)
    same(one.logp, other.logp)
    same(one.logits, other.logits)


def test_text_statistics_and_their_gradient_are_the_same(pair, images) -> None:
    prompts, texts = [pair[0].spec.prompts.ask] * 3, ["is there a circle ?", "how many ?", "what color ?"]
    gradients = []
    for b in pair:
        stats = b.text_stats(images, prompts, texts, rows=[1, 1, 0], role="proposer", grad=True, keep_logits=True)
        gradients.append((stats, torch.autograd.grad(stats.logp.sum(), b.role_parameters("proposer"))))
    (one, mine), (other, theirs) = gradients
    assert torch.equal(one.mask, other.mask)
    same(one.logp, other.logp)
    same(one.entropy, other.entropy)
    same(one.pooled, other.pooled)
    same(one.logits * one.mask[..., None], other.logits * one.mask[..., None])
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-3, rtol=1e-3)


def test_drawings_and_their_statistics_are_the_same(pair) -> None:
    prompts = ["red circle <draw>", "2 squares <draw>"]
    one, other = (b.generate_images(prompts, seeds=[3, 4], role="generator", guidance=2.0) for b in pair)
    assert torch.equal(one.codes, other.codes)
    same(one.logp, other.logp)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one.images, other.images, strict=True))
    first, second = (b.generation_stats(prompts, one.codes, role=None, keep_logits=True) for b in pair)
    for name in ("loss", "logp", "entropy"):
        same(getattr(first, name), getattr(second, name))
    assert torch.allclose(first.logits, second.logits, atol=2e-4)


@pytest.mark.parametrize("name", ["tiny-flow", "tiny-diffusion"])
def test_regressions_keep_the_noise_of_each_row(images, name: str) -> None:
    batched, prompts = load_backbone(name), ["red circle <draw>", "2 squares <draw>"]
    naive = NaiveBackbone(batched)
    one, other = (b.generate_images(prompts, seeds=[3, 4], role="generator", guidance=2.0) for b in (batched, naive))
    same(one.codes, other.codes)
    assert one.logp is None and other.logp is None
    same(batched.encode_images(images), naive.encode_images(images))
    noise = NoiseSpec(torch.tensor([[0.2, 0.9], [0.5, 0.4]]), [7, 8])
    first, second = (b.generation_stats(prompts, one.codes, role=None, noise=noise) for b in (batched, naive))
    for statistic in ("loss", "pred", "target"):
        same(getattr(first, statistic), getattr(second, statistic))
    assert second.logp is None and second.entropy is None and second.logits is None


def test_a_prefix_of_the_naive_mode_holds_pictures_only(pair, images) -> None:
    assert pair[1].prefix(images, role=None).cache == images


@pytest.mark.parametrize("backbone", ["tiny-ar", "tiny-flow"])
def test_rewards_of_both_steps_agree(pool: Path, tmp_path: Path, backbone: str, monkeypatch: pytest.MonkeyPatch
                                     ) -> None:
    """Greedy everywhere: sampled text cannot agree, since the protocol has one seed per call. A run may not sample so
    (it would learn off policy), but its rewards can be compared."""
    monkeypatch.setattr("asgkit.trainer.refuse_unfit", lambda *_: None)
    config = bench_config("tiny", pool, [*SMALL, *GREEDY, f"backbone={backbone}"])
    modes = [new_trainer(config, tmp_path / str(naive), naive) for naive in (False, True)]
    for key in ("proposer/rewards", "generator/rewards"):
        one, other = ([record[key] for record in trainer.train_step()] for trainer in modes)
        assert len(one) == 3
        same(torch.tensor(one), torch.tensor(other))


def test_the_result_holds_every_stage_and_the_machine(pool: Path) -> None:
    result = run_bench("tiny", pool, 1, [*SMALL, "schedule.images=1"])
    assert result["steps"]["U"].keys() == {"ask", "solve", "reward", "update", "total"}
    assert result["steps"]["G"].keys() == {"caption", "diagnose", "draw", "score", "update", "total"}
    row = result["steps"]["U"]["total"]
    assert row["ratio"] == pytest.approx(row["naive_s"] / row["batched_s"])
    assert {"processor", "cores", "torch", "threads", "precision"} <= result["machine"].keys()

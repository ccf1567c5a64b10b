"""A small hand-made `results/measured`: one base, three arms, a learning-rate arm; every number known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

from asgkit.runs.packed_log import NAME, pack_log
from asgkit.shapes.benchmark import TAGS
from asgkit.shapes.text import FAMILIES

BASE = "tiny-ar-clean"
BEST = {"temperature": 0.7, "guidance": 2.0}
PER_FAMILY, PER_TAG, SAMPLES = 4, 2, 2


def make_items(seed: int, gain: float = 0.0) -> dict[str, np.ndarray]:
    """Random items whose correctness rises with `gain`; the same seed gives the same luck per item."""
    rng = np.random.default_rng(seed)
    questions, prompts = PER_FAMILY * len(FAMILIES), PER_TAG * len(TAGS)
    hit = lambda *shape: rng.random(shape) < 0.5 + gain
    items = {"framings": hit(7, questions), "sampled": hit(7, questions), "canonical": hit(questions),
             "majority": hit(questions), "drawings": hit(prompts, SAMPLES), "drawings_best": hit(prompts, SAMPLES)}
    return items | {"entropy": rng.random(questions).astype(np.float32),
                    "ste": rng.random(questions).astype(np.float32),
                    "fraction": np.where(np.arange(questions) % 2, 1.0, 4 / 7).astype(np.float32),
                    "family": np.repeat(np.array(FAMILIES, "U12"), PER_FAMILY),
                    "tag": np.repeat(np.array(TAGS, "U12"), PER_TAG)}


def scores_of(items: dict[str, np.ndarray]) -> dict[str, float]:
    """The summary that an evaluation would print for these items, in percent."""
    single = items["framings"].mean(0)
    scores = {"answers/single": single.mean(), "answers/canonical": items["canonical"].mean(),
              "answers/majority": items["majority"].mean(), "answers/sampled": items["sampled"].mean(),
              "answers/agreement": items["fraction"].mean()}
    scores |= {f"answers/single/{f}": single[items["family"] == f].mean() for f in FAMILIES}
    scores |= {f"answers/majority/{f}": items["majority"][items["family"] == f].mean() for f in FAMILIES}
    for side in ("drawings", "drawings_best"):
        tags = {t: items[side][items["tag"] == t].mean() for t in TAGS}
        scores |= {f"{side}/overall": np.mean(list(tags.values()))} | {f"{side}/tag/{t}": v for t, v in tags.items()}
    return {name: 100 * float(value) for name, value in scores.items()}


def write_measurement(path: Path, items: dict[str, np.ndarray], step: int) -> None:
    path.mkdir(parents=True)
    np.savez_compressed(path / "items.npz", **items)
    content = {"step": step, "split": "test", "best_decoding": BEST, "scores": scores_of(items)}
    (path / "metrics.json").write_text(json.dumps(content))


def write_log(path: Path, shift: float) -> None:
    records = []
    for step in range(1, 6):
        if step < 4:
            records += [{"step": step, "phase": "U", "solver/majority_fraction": 0.5 + shift,
                         "solver/self_consistency_entropy": 1.0, "solver/token_entropy": value,
                         "proposer/reward": 0.2, "solver/kl": None} for value in (0.25, 0.75)]
        else:
            records.append({"step": step, "phase": "G", "generator/rewards": [0.2, 0.6], "generator/kl": 0.01,
                            "generator/zero_variance": step == 4})
    pack_log(records, path / NAME)


def write_run(root: Path, arm: str, seed: int, gain: float, rate: float = 5e-4) -> Path:
    path = root / "measured" / "runs" / f"{BASE}-{arm}-s{seed}"
    items = make_items(seed + 10, gain)
    write_measurement(path, items, 5)
    control = arm if arm in ("random", "oracle") else ""
    config = {"backbone": "tiny-ar", "base": "clean", "seed": seed, "control": control,
              "checkpoint": {"every": 30, "keep": 100}, "solver": {"learning_rate": 2e-4},
              "generator": {"learning_rate": rate}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    base, ours = scores_of(make_items(1)), scores_of(items)
    rows = [f"{step},{side},{metric},{scores[f'{side}/{metric}']},28"
            for step, scores in ((0, base), (5, ours)) for side, metric in (("answers", "single"),
                                                                          ("drawings", "overall"))]
    (path / "curve.csv").write_text("step,side,metric,value,n\n" + "\n".join(rows) + "\n")
    write_log(path, gain)
    return path


def make_examples() -> dict[str, np.ndarray]:
    pictures = np.zeros((2, 24, 24, 3), np.uint8)
    return {"drawing_base": pictures, "drawing_evolved": pictures + 200,
            "drawing_prompt": np.array(["cross", "circle"]),
            "drawing_base_ok": np.array([False, False]), "drawing_evolved_ok": np.array([True, False]),
            "drawing_rule": np.array("the first two"), "answer_image": pictures,
            "answer_question": np.array(["is there a red circle ?", "what digit is shown ?"]),
            "answer_base": np.array(["no", "3"]), "answer_evolved": np.array(["yes", "3"]),
            "answer_truth": np.array(["yes", "5"]), "answer_rule": np.array("the first two")}


def make_results(results: Path) -> Path:
    """Fill `results/measured`; returns `results`."""
    write_measurement(results / "measured" / "base" / BASE, make_items(1), 0)
    for seed in (0, 1):
        path = write_run(results, "joint", seed, 0.2)
    np.savez_compressed(path / "examples.npz", **make_examples())
    write_run(results, "random", 0, 0.0)
    write_run(results, "oracle", 0, 0.4)
    write_run(results, "lr-5e-3", 0, -0.2, rate=5e-3)
    return results

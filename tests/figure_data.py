"""A hand-made `results/measured` with logs, curves and schedules: the runs that the diagnostic figures need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import report_data as data
import yaml

from asgkit.runs.packed_log import NAME, pack_log

CLEAN = ("tiny-ar-clean", "tiny-flow-clean", "tiny-diffusion-clean")
CYCLES, IMAGES, CANDIDATES = 20, 2, 4


def records(seed: int, u: int = 3, g: int = 2, oracle: bool = False) -> list[dict]:
    """Log records of CYCLES cycles: STE rises by 0.01 a step, S_fid by 0.001, plus a seeded noise."""
    rng, found, step = np.random.default_rng(seed), [], 0
    for _ in range(CYCLES):
        for place in range(u + g):
            step += 1
            found += [_understanding(step, rng) if place < u else _generation(step, rng, oracle)
                      for _ in range(IMAGES)]
    return found


def _understanding(step: int, rng: np.random.Generator) -> dict:
    fraction = float(rng.choice([3, 5, 7])) / 7
    return {"step": step, "phase": "U", "solver/majority_fraction": fraction, "solver/answers": ["a", "b"],
            "solver/self_consistency_entropy": 1.0 - fraction, "solver/token_entropy": 0.01 * step + 0.1 * rng.random(),
            "proposer/reward": 0.2, "proposer/zero_variance": step % 2 == 0, "solver/kl": None}


def _generation(step: int, rng: np.random.Generator, oracle: bool) -> dict:
    rewards = rng.random(CANDIDATES).round(6)
    names = ("fidelity", "cycle", "text_similarity", "image_text_similarity", "diversity")
    return {"step": step, "phase": "G", "generator/rewards": rewards.tolist(), "generator/zero_variance": False,
            **{f"generator/{name}": (0.001 * step + 0.5 * rng.random(CANDIDATES)).tolist() for name in names},
            "judge_scores": (rewards > np.median(rewards)).astype(float).tolist() if oracle else []}


def write_run(results: Path, base: str, arm: str, seed: int, *, u: int = 3, g: int = 2, curve: bool = True,
              gain: float = 0.1, control: str = "", scorer: str = "live") -> Path:
    path = results / "measured" / "runs" / f"{base}-{arm}-s{seed}"
    data.write_measurement(path, data.make_items(seed + 10, gain), 5)
    backbone, name = base.rsplit("-", 1)
    config = {"backbone": backbone, "base": name, "seed": seed, "control": control,
              "schedule": {"understanding": u, "generation": g}, "solver": {"learning_rate": 2e-4},
              "generator": {"learning_rate": 5e-4, "scorer": scorer}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    if curve:
        steps = np.array([0, 1, 2]) * CYCLES * (u + g) // 2
        rows = [f"{step},{side},{metric},{50 + 0.1 * step + seed * (step > 0)}" for step in steps
                for side, metric in (("answers", "single"), ("answers", "majority"), ("drawings", "overall"))]
        (path / "curve.csv").write_text("step,side,metric,value\n" + "\n".join(rows) + "\n")
    pack_log(records(seed, u, g, control == "oracle"), path / NAME)
    return path


def write_base(results: Path, base: str) -> None:
    data.write_measurement(results / "measured" / "base" / base, data.make_items(1), 0)


def make_results(results: Path) -> Path:
    """tiny-ar: joint of three seeds, u-only, g-only, oracle, u-long; tiny-flow: joint, g-only, g-rwr, judges."""
    for base in CLEAN[:2]:
        write_base(results, base)
        for seed in range(3):
            write_run(results, base, "joint", seed)
    write_run(results, CLEAN[0], "u-only", 0, g=0)
    write_run(results, CLEAN[0], "u-long", 0, g=0)
    write_run(results, CLEAN[0], "oracle", 0, curve=False, control="oracle")
    for seed in range(2):
        write_run(results, CLEAN[1], "g-only", seed, u=0, curve=False)
        write_run(results, CLEAN[1], "g-rwr", seed, u=0, curve=False, gain=-0.2)
    write_run(results, CLEAN[1], "judge-60", 0, u=0, curve=False, scorer="results/pretrain/some-judge.safetensors")
    write_run(results, CLEAN[1], "judge-oracle", 0, u=0, curve=False, control="oracle")
    return results

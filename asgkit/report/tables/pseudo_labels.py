"""How often the Solver's own majority is right on the questions that it learns from: the reason behind its gains.

The log names the picture and the question, the default pool's scenes are known, so every taught majority can be
checked. Evaluation only: the loop never sees an answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from asgkit.report.measured import Measured, Run
from asgkit.shapes.text import answer_question
from asgkit.shapes.world import Scene, pool_scenes
from asgkit.solve import normalise_answer

POOL_SCENES = 2000  # of the default pool
THIRDS = ("early", "middle", "late")
NAME = re.compile(r"(?:.*/)?(\d{5})\.png")


def check_labels(run: Run, scenes: Sequence[Scene]) -> pd.DataFrame:
    """Every taught q* of a run: step, opening (the question's first two words), determined (the picture has an answer
    to it) and right (the majority is that answer). Pictures that are not of the default pool are left out."""
    log = run.log(["step", "image", "question", "solver/majority", "solver/trained"])
    rows = []
    for record in log[log["solver/trained"] == True].to_dict("records"):
        match = NAME.fullmatch(record["image"])
        if match is None or int(match[1]) >= len(scenes):
            continue
        truth = answer_question(scenes[int(match[1])], record["question"])
        right = truth is not None and normalise_answer(truth) == record["solver/majority"]
        rows.append((record["step"], " ".join(record["question"].split()[:2]), truth is not None, right))
    return pd.DataFrame(rows, columns=["step", "opening", "determined", "right"])


def label_accuracy(measured: Measured, arms: Sequence[str] = ("joint",)) -> pd.DataFrame:
    """Accuracy of taught majorities by base, opening and third of the run, over the seeds of an arm.

    Columns: base, arm, opening (`all` for every question), third, seeds, n, determined and right (percent of n), and
    low, high: the smallest and largest share of right among seeds with at least ten such questions (NaN: none has).
    """
    scenes = pool_scenes(POOL_SCENES)
    rows = []
    for base in sorted(measured.bases):
        for arm in arms:
            parts = [check_labels(run, scenes).assign(seed=i) for i, run in enumerate(measured.arms(base).get(arm, []))]
            names = " ".join(run.name for run in measured.arms(base).get(arm, []))
            if parts and not (table := pd.concat(parts)).empty:
                rows += [(*row, "measured", names) for row in _thirds(base, arm, table)]
    columns = ["base", "arm", "opening", "third", "seeds", "n", "determined", "right", "low", "high", "source",
               "run_ids"]
    return pd.DataFrame(rows, columns=columns)


def _thirds(base: str, arm: str, table: pd.DataFrame) -> list[tuple]:
    edge = table["step"].max() / 3
    third = np.minimum((table["step"] - 1) // edge, 2).astype(int)
    openings = ["all", *sorted(name for name, n in table["opening"].value_counts().items() if n >= 30)]
    rows = []
    for opening in openings:
        for i, name in enumerate(THIRDS):
            part = table[(third == i) & ((table["opening"] == opening) | (opening == "all"))]
            if part.empty:
                continue
            each = [100.0 * seed["right"].mean() for _, seed in part.groupby("seed") if len(seed) >= 10]
            low, high = (min(each), max(each)) if each else (np.nan, np.nan)
            rows.append((base, arm, opening, name, part["seed"].nunique(), len(part), 100.0 * part["determined"].mean(),
                         100.0 * part["right"].mean(), low, high))
    return rows

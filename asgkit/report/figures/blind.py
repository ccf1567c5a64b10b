"""Do the answers come from the picture? The same questions with another's, a grey one or none, over steps."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes

from asgkit.report.figures.ours import by_base
from asgkit.report.figures.panels import End, dotted, label_ends
from asgkit.report.figures.series import COLUMNS, Made, arm_runs
from asgkit.report.figures.style import OKABE_ITO
from asgkit.report.measured import Measured, Measurement

MODES = {"real": ("own picture", OKABE_ITO["blue"], "o"), "shuffled": ("another's", OKABE_ITO["vermillion"], "s"),
         "blank": ("grey", OKABE_ITO["orange"], "^"), "none": ("none", OKABE_ITO["purple"], "D")}


def blind_baselines(measured: Measured) -> Made:
    """Accuracy (percent) of the canonical answer on dev questions by what stands in the picture's place, over steps.

    Joint runs. A gain that the lower lines share is a better guess, not better sight. Grey line: the commonest answer
    of each question family, which asks no model.
    """
    def draw(ax: Axes, base: str) -> tuple[pd.DataFrame, list[Measurement]] | None:
        runs = [run for run in arm_runs(measured, base, "joint") if len(run.blind())]
        if not runs:
            return None
        held = pd.concat([run.blind() for run in runs], ignore_index=True)
        held = held[held["family"] == "all"]
        parts, ends = [], []
        for mode, (label, colour, marker) in MODES.items():
            frame = held[held["mode"] == mode]
            plotted, height = dotted(ax, frame[COLUMNS].reset_index(drop=True), colour, marker)
            parts.append(plotted.assign(series=mode))
            ends.append(End(height, label, colour))
        guess = float(held.loc[held["mode"] == "commonest", "value"].iloc[0])
        ax.axhline(guess, color="0.6", lw=0.7, zorder=0)
        parts.append(pd.DataFrame({"series": ["commonest"], "kind": ["reference"], "value": [guess]}))
        ax.set_ylim(0, 100)
        label_ends(ax, ends, gap=0.09)
        return pd.concat(parts), list(runs)
    return by_base(measured, "joint runs with blind.csv", draw, "canonical answer correct (%)", "step",
                   "joint runs on dev questions: thin: seeds, thick: mean with 95% over seeds; grey line: the "
                   "commonest answer of each family")


FIGURES: dict[str, Callable[[Measured], Made]] = {"ours_blind": blind_baselines}
BASE_FIGURES: dict[str, Callable[[Measured, str], Made]] = {}

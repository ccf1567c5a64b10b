"""Small helpers of the notebooks: pictures in a grid, digests to print beside them, and checked exercises.

Nothing here belongs to the method; the trainer never imports it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import math
import platform
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML
from IPython.display import Image as Shown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from asgkit.ask import question_problems
from asgkit.config import ConfigError, resolve
from asgkit.lessons.exercises import Exercise
from asgkit.lessons.exercises import near as _near
from asgkit.lessons.exercises import word as _word
from asgkit.lessons.exercises_real import REAL
from asgkit.lessons.exercises_signals import SIGNALS
from asgkit.lessons.exercises_tables import TABLES
from asgkit.report.tables.tables import to_html
from asgkit.shapes.world import Scene, render, sample_scene
from asgkit.solve import vote
from asgkit.ste import token_entropy

LIBRARIES = ("asgkit", "torch", "transformers", "peft", "numpy", "pandas", "matplotlib")
# Okabe-Ito, readable with every common colour vision; one colour per role in every notebook.
COLORS = {"proposer": "#0072B2", "solver": "#009E73", "generator": "#D55E00", "other": "#555555",
          "light": "#E69F00", "sky": "#56B4E9"}


def start_notebook(threads: int = 1) -> None:
    """One style for all figures, and `threads` threads: sums in one order give the same digits on every run."""
    torch.set_num_threads(threads)
    # A library asks for a progress widget when it is imported; no notebook here shows one.
    warnings.filterwarnings("ignore", message="IProgress not found")
    plt.rcParams.update({"figure.dpi": 90, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
                         "axes.titlesize": 9, "legend.frameon": False, "figure.constrained_layout.use": True})


def versions() -> str:
    """The interpreter and the libraries that the notebook runs on, one per line."""
    rows = [("python", platform.python_version())]
    rows += [(name, importlib.metadata.version(name)) for name in LIBRARIES]
    return "\n".join(f"{name:<13}{version}" for name, version in rows)


def sample_scenes(number: int, seed: int, split: str = "dev", **fixed: Any) -> list[Scene]:
    """`number` scenes of the shapes world from one seed; `fixed` goes to `asgkit.shapes.world.sample_scene`."""
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, split, **fixed) for _ in range(number)]


def pictures(scenes: Sequence[Scene]) -> list[Image.Image]:
    """The 24x24 pictures of scenes."""
    return [Image.fromarray(render(scene)) for scene in scenes]


def show_grid(images: Sequence[Any], titles: Sequence[str] = (), columns: int = 8, size: float = 1.0) -> Figure:
    """Pictures (PIL or arrays (H, W, 3)) in rows of `columns`, `size` inches each, pixels left sharp.

    Raises ValueError without pictures, or with another number of titles than pictures (or none).
    """
    if not images or (titles and len(titles) != len(images)):
        raise ValueError(f"need pictures and as many titles, got {len(images)} and {len(titles)}")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    lines = max((title.count("\n") + 1 for title in titles), default=0)
    figure, axes = plt.subplots(rows, columns, squeeze=False,
                                figsize=(columns * size, rows * (size + 0.15 * lines)))
    for axis in axes.flat:
        axis.axis("off")
    for index, image in enumerate(images):
        axis = axes.flat[index]
        axis.imshow(np.asarray(image), interpolation="nearest")
        if titles:
            axis.set_title(titles[index], fontsize=7, pad=3)
    return figure


def picture(figure: Figure, dpi: int = 110, colors: int = 64) -> Shown:
    """A figure of the report as a PNG of few colours: a third of the size, so that a notebook can hold several.

    dpi: pixels per inch; a text width of 5.5 in gives 600 pixels.
    """
    plain, small = io.BytesIO(), io.BytesIO()
    figure.savefig(plain, format="png", dpi=dpi, bbox_inches="tight")
    pixels = Image.open(plain).convert("RGB")
    few = pixels.quantize(colors, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # keeps rare hues, as of words
    few.save(small, format="PNG", optimize=True)
    return Shown(small.getvalue(), format="png")


def show_table(frame: pd.DataFrame, title: str = "") -> HTML:
    """A frame of texts under its title, as HTML: equal frames give equal bytes."""
    return HTML(to_html(frame, title))


def digest(values: Any) -> str:
    """Twelve hex digits of whole numbers (pictures, codes, counts): a plot's data, comparable as text.

    Raises TypeError for floats: their last bits differ between machines, so round or print them instead.
    """
    array = np.ascontiguousarray(np.asarray(values))
    if array.dtype.kind not in "iub":
        raise TypeError(f"digest needs whole numbers, got {array.dtype}: print rounded values instead")
    head = f"{array.shape}".encode()
    return hashlib.sha256(head + array.astype("<i8").tobytes()).hexdigest()[:12]


def describe(figure: Figure) -> str:
    """What a figure shows, as text: per axes its title or label, and how many lines, points, bars and pictures."""
    rows = []
    for number, axis in enumerate(figure.axes):
        parts = {"lines": len(axis.lines), "points": sum(len(c.get_offsets()) for c in axis.collections),
                 "bars": len(axis.patches), "pictures": len(axis.images)}
        shown = ", ".join(f"{count} {name}" for name, count in parts.items() if count)
        name = axis.get_title().replace("\n", " ") or axis.get_ylabel() or "-"
        rows.append(f"axes {number} ({name}): {shown}")
    return "\n".join(rows)


# -- the map of the method -----------------------------------------------------------------------------------------
_BOXES = {  # name: (x, y, width, height, text, colour)
    "images": (4.1, 4.05, 1.8, 0.75, "unlabelled\nimages", COLORS["other"]),
    "proposer": (0.3, 1.6, 2.0, 0.95, "Proposer\nasks", COLORS["proposer"]),
    "solver": (4.0, 1.6, 2.0, 0.95, "Solver\nanswers 7 times ($R_s$)", COLORS["solver"]),
    "generator": (7.7, 1.6, 2.0, 0.95, "Generator\ndraws", COLORS["generator"]),
}
_ARROWS = (  # start, end, bend, label, label place, role that gives the colour
    ((4.1, 4.3), (1.5, 2.6), 0.15, "look", (2.2, 3.65), "proposer"),
    ((5.0, 4.0), (5.0, 2.6), 0.0, "look, caption", (5.1, 3.3), "solver"),
    ((2.35, 2.25), (3.95, 2.25), 0.0, "questions", (2.62, 2.4), "proposer"),
    ((3.95, 1.85), (2.35, 1.85), 0.0, "$R_p$", (3.0, 1.5), "proposer"),
    ((6.05, 2.25), (7.65, 2.25), 0.0, "prompt $t$", (6.35, 2.4), "generator"),
    ((7.65, 1.85), (6.05, 1.85), 0.0, "drawings", (6.4, 1.5), "generator"),
    ((5.6, 2.6), (8.6, 2.6), -0.55, "$R_g$", (7.0, 3.55), "generator"),
)


def draw_map() -> Figure:
    """The three roles on one frozen model, the understanding loop (left) and the generation loop (right)."""
    figure, axis = plt.subplots(figsize=(7.6, 3.9))
    axis.set(xlim=(0, 10), ylim=(0, 5))
    axis.axis("off")
    axis.add_patch(FancyBboxPatch((0.2, 0.3), 9.6, 0.65, boxstyle="round,pad=0.08", fc="#EEEEEE", ec="#888888"))
    axis.text(5.0, 0.62, "one frozen unified model; each role is a small LoRA adapter on it", ha="center", va="center")
    for x in (1.3, 5.0, 8.7):
        axis.plot([x, x], [1.03, 1.55], color="#888888", lw=1, ls=":")
    for x, y, width, height, text, color in _BOXES.values():
        axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.05", fc="white", ec=color, lw=2))
        axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=color)
    for start, end, bend, label, place, role in _ARROWS:
        _arrow(axis, start, end, bend, COLORS[role])
        axis.text(*place, label, color=COLORS[role], fontsize=8)
    axis.text(0.3, 4.55, "understanding loop:\nask, solve", color=COLORS["proposer"], va="center")
    axis.text(9.7, 4.55, "generation loop:\ndraw, score", color=COLORS["generator"], va="center", ha="right")
    return figure


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], bend: float, color: str) -> None:
    axis.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>",
                                   mutation_scale=12, color=color, lw=1.4))


# -- exercises -----------------------------------------------------------------------------------------------------
def _sets_framings(text: Any) -> bool:
    try:
        return resolve("smoke", [str(text)]).solver.framings == 5
    except ConfigError:
        return False


def _tied_vote(answers: Any) -> bool:
    found = vote(list(answers))
    return len(found.answers) == 7 and found.margin == 0.0 and len(set(found.answers)) == 3


EXERCISES: dict[str, Exercise] = {
    "00.1": Exercise(_word("solver"), "In the map, from which box do the arrows R_p and R_g start?"),
    "00.2": Exercise(_word("g"), "Steps 1 2 3 are U, 4 5 are G, and then it starts again."),
    "00.3": Exercise(_near(24), "K questions under N framings each, and one greedy answer per question for STE."),
    "01.1": Exercise(_near(768), "A is (rank, in) and B is (out, rank): rank x (in + out) numbers."),
    "01.2": Exercise(_near(2.0), "The update is (alpha / rank) B A."),
    "01.3": Exercise(lambda attempt: attempt is False, "Every role owns its tensors; the base never moves."),
    "02.1": Exercise(lambda attempt: question_problems(str(attempt)) == [],
                     "At least three words, an interrogative word in front, a question mark at the end, no opinion."),
    "02.2": Exercise(_near(0.41), "0.70 d_ste + 0.30 r_sc."),
    "02.3": Exercise(_near(1.2247), "Mean 0.5; population standard deviation sqrt((0.25 + 0.25 + 0) / 3)."),
    "03.1": Exercise(_near(0.5983), "-(5/7) ln(5/7) - (2/7) ln(2/7), natural logarithm."),
    "03.2": Exercise(_tied_vote, "Seven answers, three different ones, the two most frequent equally often: 3, 3, 1."),
    "03.3": Exercise(lambda attempt: str(attempt) == "the red circle",
                     "Lower case, commas to spaces, punctuation off the edges; articles stay."),
    "04.1": Exercise(_near(math.log(8)), "ln V for a uniform distribution over V tokens."),
    "04.2": Exercise(lambda attempt: 0 < float(token_entropy(torch.tensor([[attempt]]).float())) < 0.1,
                     "One logit must be larger than the others by about 6; not by 100, or the entropy is zero."),
    "04.3": Exercise(_near(0.3125), "Two values are smaller and one is equal, which counts half; divide by 8."),
    "04.4": Exercise(_word("smaller"), "Dividing logits by 0.5 doubles every gap between them."),
    "05.1": Exercise(_near(1.0), "Both hold a number, and the rule compares the first numbers only."),
    "05.2": Exercise(_near(0.54), "0.65 x 0.8 + 0.20 x 0.6 + 0.10 x 0 - 0.20 x 0.5, times the quality 1."),
    "05.3": Exercise(_near(1.0), "The three positive weights are divided by their sum, 0.95."),
    "05.4": Exercise(_near(0.0), "Taking away one of three equal pictures changes no distance."),
    "06.1": Exercise(_sets_framings, "The key is the section, a dot and the name: solver.framings, then =5."),
    "06.2": Exercise(_word("g"), "With one step of each kind, odd steps are U and even steps are G."),
    "06.3": Exercise(_word("generator/zero_variance"), "Look for the word variance among the fields of a G record."),
    "pr.1": Exercise(_near(0.648), "All three right, or two of three: p^3 + 3 p^2 (1 - p)."),
    "pr.2": Exercise(_near(2 / 3), "Three pairs of a wrong and a right answer; in how many is 3 the larger?"),
    "pr.3": Exercise(_near(2), "Where all candidates are equally right there is no order."),
    "pr.4": Exercise(_word("not shown"), "Two standard errors are 2.0 points, and the gap is smaller than that."),
}
EXERCISES |= SIGNALS | TABLES | REAL


def judge(name: str, attempt: Any) -> bool | None:
    """Whether an attempt at an exercise is right; None when it was not attempted. Raises KeyError for no such one.

    An attempt of a wrong kind (a word where a number is asked) is wrong, not an error.
    """
    exercise = EXERCISES[name]
    if attempt is None:
        return None
    try:
        return bool(exercise.judge(attempt))
    except (TypeError, ValueError, RuntimeError):
        return False


def check(name: str, attempt: Any) -> None:
    """Print what became of an exercise: right, not yet (with a hint), or not attempted yet."""
    verdict = judge(name, attempt)
    if verdict is None:
        print(f"exercise {name}: not attempted yet")
    elif verdict:
        print(f"exercise {name}: right")
    else:
        print(f"exercise {name}: not yet. Hint: {EXERCISES[name].hint}")

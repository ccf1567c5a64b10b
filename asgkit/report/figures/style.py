"""One look for every figure: sizes in inches, Okabe-Ito colours and markers per arm, and how figures are saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from asgkit.report.provenance import KEY, as_text, write_sidecar

TEXT_WIDTH = 5.5
OKABE_ITO = {"black": "#000000", "orange": "#E69F00", "sky": "#56B4E9", "green": "#009E73", "yellow": "#F0E442",
             "blue": "#0072B2", "vermillion": "#D55E00", "purple": "#CC79A7"}
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "legend.fontsize": 7,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.linewidth": 0.6, "axes.spines.top": False,
    "axes.spines.right": False, "lines.linewidth": 1.0, "lines.markersize": 3.5, "legend.frameon": False,
    "pdf.fonttype": 42, "svg.hashsalt": "asgkit", "figure.dpi": 120, "savefig.dpi": 200,
    "axes.prop_cycle": matplotlib.cycler(color=list(OKABE_ITO.values())),
}
# A marker beside each colour: the figures stay readable in grey.
ARMS: dict[str, tuple[str, str]] = {
    "joint": (OKABE_ITO["blue"], "o"), "random": (OKABE_ITO["orange"], "s"), "oracle": (OKABE_ITO["green"], "^"),
    "no-vote": (OKABE_ITO["purple"], "X"), "photos": (OKABE_ITO["black"], "*"),
    "permuted": (OKABE_ITO["yellow"], "D"), "constant": (OKABE_ITO["sky"], "v"),
}
OTHER = (OKABE_ITO["vermillion"], "P")
# Arms that appear in a figure of their own: eight colours do not reach for all, the pair with the marker is unique.
LOOPS: dict[str, tuple[str, str]] = {
    "u-only": (OKABE_ITO["vermillion"], "<"), "g-only": (OKABE_ITO["green"], ">"),
    "u-long": (OKABE_ITO["vermillion"], "h"), "g-long": (OKABE_ITO["green"], "H"),
}
BACKBONES: dict[str, tuple[str, str]] = {  # panels per backbone show one method, so the colours may be those of arms
    "tiny-ar": (OKABE_ITO["blue"], "o"), "tiny-flow": (OKABE_ITO["vermillion"], "s"),
    "tiny-diffusion": (OKABE_ITO["green"], "^"),
}
THIRDS = {"early": OKABE_ITO["sky"], "middle": OKABE_ITO["purple"], "late": OKABE_ITO["blue"]}  # of training
P = ParamSpec("P")


def arm_style(arm: str) -> tuple[str, str]:
    """Colour and marker of an arm; arms without one of their own share vermillion."""
    return {**LOOPS, **ARMS}.get(arm, OTHER)


def backbone_style(base: str) -> tuple[str, str]:
    """Colour and marker of the backbone of a base `<backbone>-<base>`; unknown backbones share black."""
    return BACKBONES.get(base.rsplit("-", 1)[0], (OKABE_ITO["black"], "D"))


def arm_order(arms: Iterable[str]) -> list[str]:
    """Known arms in their fixed order, then the others by name."""
    given = set(arms)
    known = [*ARMS, *LOOPS]
    return [arm for arm in known if arm in given] + sorted(given - set(known))


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw under `STYLE`, whatever the caller's matplotlib settings are."""
    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": matplotlib.get_backend()}):
            return draw(*args, **kwargs)
    return inside


def save_figure(fig: Figure, path_stem: str | Path, data: pd.DataFrame, provenance: dict[str, Any]) -> list[Path]:
    """Write `<stem>.pdf`, `.png` (200 dpi), `.csv` (the plotted points) and `.json`; returns their paths.

    The provenance also travels inside the PNG (text chunk `asgkit`) and the PDF (Subject). Same figure, data and
    versions: same bytes.
    """
    stem = Path(path_stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    pdf, png, csv = (stem.with_name(stem.name + suffix) for suffix in (".pdf", ".png", ".csv"))
    text = as_text(provenance)
    with matplotlib.rc_context(STYLE):
        fig.savefig(pdf, metadata={"CreationDate": None, "Subject": text})
        fig.savefig(png, dpi=200, metadata={KEY: text})
    write_csv(data, csv)
    return [pdf, png, csv, write_sidecar(stem, provenance, [pdf, png, csv])]


def write_csv(data: pd.DataFrame, path: Path) -> None:
    """Write a frame with a fixed number format, so that equal data give equal bytes."""
    path.write_text(data.to_csv(index=False, float_format="%.10g", lineterminator="\n"), encoding="utf-8")


def empty_panel(message: str) -> tuple[Figure, pd.DataFrame]:
    """A figure that says what is missing and which command fills it, never a made-up point."""
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(TEXT_WIDTH, 1.2), layout="constrained")
        ax = fig.subplots()
        ax.set_axis_off()
        ax.text(0.5, 0.5, message, ha="center", va="center", color="0.35")
    return fig, pd.DataFrame({"missing": [message]})


def is_empty(data: pd.DataFrame) -> bool:
    """Whether a figure's points are those of `empty_panel`."""
    return list(data.columns) == ["missing"]

"""`asgkit report`: every table and figure from what `results/measured` holds; what is missing says how to fill it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from asgkit.report.figures import blind as figures_blind
from asgkit.report.figures import dynamics as figures_dynamics
from asgkit.report.figures import ours as figures_ours
from asgkit.report.figures import per_base as figures
from asgkit.report.figures import relations as figures_relations
from asgkit.report.figures import rewards as figures_rewards
from asgkit.report.figures import signals as figures_signals
from asgkit.report.figures.style import empty_panel, is_empty, save_figure
from asgkit.report.measured import MAIN, Measured, Measurement, Run, load_measured
from asgkit.report.page.index import Entry, write_figure_pages, write_table_page
from asgkit.report.page.page import write_page
from asgkit.report.places import LAYOUTS, PAGE, TABLES, figure_place
from asgkit.report.provenance import provenance
from asgkit.report.tables.build import write_published, write_tables
from asgkit.report.tables.gains import Gains
from asgkit.report.tables.tables import DESIGNED, KEPT, MAIN_ARMS, Form, joint_table
from asgkit.stats.effects import over_base

# Shipped bases: without results their figures are empty panels.
EXPECTED = ("tiny-ar-clean", "tiny-ar-registers", "tiny-flow-clean", "tiny-diffusion-clean")
FOREST = ("answers/single", "answers/canonical", "answers/majority", "answers/sampled", "drawings/overall",
          "drawings_best/overall")
RESAMPLES = 10_000


class _Nothing(Exception):
    """No input for a figure; the message says which command makes it."""


def build_report(results_dir: str | Path = Path("results"), figures_dir: str | Path = Path("figures"),
                 out_dir: str | Path | None = None, *, forms: Sequence[Form] = KEPT, empty: bool = True) -> list[Path]:
    """Write every table, figure and page of what `<results_dir>` holds; returns the files written.

    Tables go below `out_dir` (default `results_dir`): measured ones, with the twins of published ones, to
    `measured/tables`; the layouts of the published ones, where `<results_dir>/paper` holds them, to `paper/tables`; the
    results page, if there is one, to `measured` with its tables filled (`asgkit.report.page.page`). Figures go to
    `paper` and `ours` below `figures_dir`. Each of these folders gets an index page (`asgkit.report.page.index`).
    `forms`: what a table is written as. `empty`: whether a figure that lacks all its runs is written too, as a panel
    that names their command. Raises Untraceable when a number does not follow from its items.
    """
    results, out = Path(results_dir), Path(out_dir or results_dir)
    measured = load_measured(results)
    gains = Gains(measured, RESAMPLES)
    written = write_tables(measured, gains, results, out / TABLES, forms)
    written += write_table_page(out / TABLES, "Measured tables", written)
    written += write_page(results / "measured" / PAGE, out / TABLES, out / "measured" / PAGE)
    published = write_published(results, out / LAYOUTS, forms)
    written += published + write_table_page(out / LAYOUTS, "Published tables, not measured here", published)
    return written + _figures(measured, joint_table(measured, gains=gains), results, Path(figures_dir), empty)


def _figures(measured: Measured, table: pd.DataFrame, results: Path, folder: Path, empty: bool) -> list[Path]:
    """One figure per base and kind, then those that show several bases; what is missing leaves an empty panel."""
    written: list[Path] = []
    entries: list[Entry] = []

    def save(kind: str, base: str, fig: Figure, data: pd.DataFrame, used: list[Measurement]) -> None:
        if empty or not is_empty(data):
            place = figure_place(folder, kind, base)
            written.extend(save_figure(fig, place, data, provenance(used, results, place.name)))
            entries.append(Entry(kind, base, is_empty(data)))

    for base in sorted({*EXPECTED, *(run.base for run in measured.runs)}):
        for name, make in _FIGURES.items():
            try:
                (fig, data), used = make(measured, base, table)
            except _Nothing as missing:
                (fig, data), used = empty_panel(f"{name} of {base}: {missing}"), []
            if base.endswith(DESIGNED):  # below the panels where a legend stands above them
                say = fig.supxlabel if fig.legends else fig.suptitle
                say("base registers: framings err independently by design", fontsize=6, color="0.35")
            save(name, base, fig, data, used)
        for name, draw in _BY_BASE.items():
            save(name, base, *draw(measured, base))
    for name, draw in _SHARED.items():
        save(name, "", *draw(measured))
    return written + write_figure_pages(folder, entries)


def _base(measured: Measured, base: str) -> Measurement:
    if base not in measured.bases:
        raise _Nothing("no base measurement\nasgkit reproduce --profile small")
    return measured.bases[base]


def _runs(measured: Measured, base: str, *, rates: bool = False) -> list[Run]:
    """Runs of a base: its main arms; with `rates` the learning-rate ones and the method itself."""
    wanted = (lambda arm: arm.startswith("lr-") or arm == "joint") if rates else (lambda arm: arm in MAIN_ARMS)
    runs = [run for arm, group in measured.arms(base).items() for run in group if wanted(arm)]
    if not runs:
        raise _Nothing("no evaluated runs\nasgkit reproduce --profile small")
    return runs


def _learning_curve(measured: Measured, base: str, table: pd.DataFrame):
    runs = [run for run in _runs(measured, base) if (run.path / "curve.csv").is_file()]
    if not runs:
        raise _Nothing("no run has a curve.csv\nasgkit eval RUN --curve")
    curves = pd.concat([run.curve() for run in runs], ignore_index=True)
    first = curves[curves["step"] == 0]  # the base's own line: same split, same items as the curves
    lines = {side: float(first[(first["side"] == side) & (first["metric"] == metric)]["value"].mean())
             for side, metric in MAIN.items() if ((first["side"] == side) & (first["metric"] == metric)).any()}
    held = _base(measured, base)
    best = _best_decoding(held, lines.get("drawings"))
    lines |= {} if best is None else {"drawings_best": best}
    return figures.learning_curve(curves, lines), [held, *runs]


def _best_decoding(held: Measurement, default: float | None) -> float | None:
    """The base's score at its best decoding on the items of a curve, known by the default score that they share.

    Taken from the base's metrics.json or, for the smaller dev items of learning curves, from its curve_base.json;
    None when neither was measured on the curve's items.
    """
    path = held.path / "curve_base.json"
    measured = [held.metrics["scores"]] + ([json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else [])
    pairs = [(scores["drawings/overall"], scores["drawings_best/overall"]) for scores in measured]
    return next((best for plain, best in pairs if default is not None and abs(plain - default) < 1e-3), None)


def _gains(measured: Measured, base: str, table: pd.DataFrame):
    held, runs = _base(measured, base), _runs(measured, base)
    own = table[(table["base"] == base) & table["metric"].isin(FOREST)]
    points = [{"arm": run.arm, "seed": run.seed, "metric": metric,
               "delta": 100 * float((run.values(metric) - held.values(metric)).mean())}
              for run in runs for metric in FOREST]
    return figures.forest(own, pd.DataFrame(points)), [held, *runs]


def _premise(measured: Measured, base: str, table: pd.DataFrame):
    held = _base(measured, base)
    return figures.premise(held.items), [held]


def _signals(measured: Measured, base: str, table: pd.DataFrame):
    runs = [run for run in _runs(measured, base) if run.log_path]
    if not runs:
        raise _Nothing("no run has a packed log\nasgkit reproduce --profile small")
    fields = ("step", "phase", *(name for name, _, _ in figures.SIGNALS))
    return figures.signals([(run.arm, run.seed, run.log(fields)) for run in runs]), runs


def _learning_rates(measured: Measured, base: str, table: pd.DataFrame):
    held, runs = _base(measured, base), _runs(measured, base, rates=True)
    if not any(run.arm.startswith("lr-") for run in runs):
        raise _Nothing("no runs of an arm lr-*\nasgkit train generator.learning_rate=5e-3")
    points, means = [], []
    for side, metric in MAIN.items():
        role = "solver" if side == "answers" else "generator"
        before = held.values(f"{side}/{metric}")
        groups: dict[tuple[str, float], list[Run]] = {}
        for run in runs:
            groups.setdefault((run.arm, float(run.config[role]["learning_rate"])), []).append(run)
        own_rate = {rate for arm, rate in groups if arm == "joint"}
        for (arm, rate), group in groups.items():
            if arm != "joint" and rate in own_rate:  # it varied the other role's rate: the other panel's business
                continue
            after = np.stack([run.values(f"{side}/{metric}") for run in group])
            found = over_base(before, after, resamples=RESAMPLES)
            means.append({"side": side, "arm": arm, "rate": rate, "delta": 100 * found.delta, "low": 100 * found.low,
                          "high": 100 * found.high, "seeds": found.n_seeds, "n": found.n_items})
            points += [{"side": side, "arm": arm, "seed": run.seed, "rate": rate,
                        "delta": 100 * float((values - before).mean())}
                       for run, values in zip(group, after, strict=True)]
    return figures.learning_rates(pd.DataFrame(points), pd.DataFrame(means)), [held, *runs]


def _examples(draw: Callable) -> Callable:
    """The method's run of the lowest seed that has examples: fixed before anyone looked at a picture."""
    def make(measured: Measured, base: str, table: pd.DataFrame):
        runs = [run for run in measured.arms(base).get("joint", []) if (run.path / "examples.npz").is_file()]
        if not runs:
            raise _Nothing("no joint run has an examples.npz\nasgkit reproduce --profile small")
        with np.load(runs[0].path / "examples.npz", allow_pickle=False) as held:
            return draw(dict(held)), [_base(measured, base), runs[0]]
    return make


_FIGURES: dict[str, Callable] = {
    "learning_curve": _learning_curve, "gains": _gains, "premise": _premise, "signals": _signals,
    "learning_rates": _learning_rates, "before_after_drawings": _examples(figures.before_after_drawings),
    "before_after_answers": _examples(figures.before_after_answers),
}
_MODULES = (figures_signals, figures_dynamics, figures_relations, figures_rewards, figures_ours, figures_blind)
_BY_BASE: dict[str, Callable] = {name: make for module in _MODULES for name, make in module.BASE_FIGURES.items()}
_SHARED: dict[str, Callable] = {name: make for module in _MODULES for name, make in module.FIGURES.items()}

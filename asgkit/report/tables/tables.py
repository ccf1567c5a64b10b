"""Measured tables: one tidy frame, from it CSV and Markdown, LaTeX and HTML on demand. No cell without its items."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from asgkit.report.figures.style import arm_order, write_csv
from asgkit.report.measured import Measured, Measurement, Run, Untraceable
from asgkit.report.provenance import write_sidecar
from asgkit.report.tables.gains import Gain, Gains
from asgkit.shapes.benchmark import TAGS
from asgkit.shapes.text import FAMILIES
from asgkit.stats.effects import over_arm, over_base
from asgkit.stats.intervals import Interval

METRICS = ("answers/single", "answers/canonical", "answers/majority", "answers/sampled", "answers/agreement",
           *(f"answers/{vote}/{family}" for vote in ("single", "majority") for family in FAMILIES),
           *(f"{decoding}/{part}" for decoding in ("drawings", "drawings_best")
             for part in ("overall", *(f"tag/{tag}" for tag in TAGS))))
CONTRASTS = ("answers/single", "answers/canonical", "answers/majority", "drawings/overall", "drawings_best/overall")


MAIN_ARMS = ("joint", "random", "oracle", "no-vote", "photos")  # what a reader wants side by side; others: by grid
DESIGNED = "-registers"  # end of the names of bases whose framings were taught errors of their own


def designed(bases: pd.Series) -> str:
    """What every page that shows the registers base must say; nothing for a page that does not."""
    shown = bases.str.endswith(DESIGNED).any()
    return " On registers the framings err independently by design: its voting gain is built in." if shown else ""


def joint_table(measured: Measured, *, resamples: int = 10_000, gains: Gains | None = None) -> pd.DataFrame:
    """Base -> evolved for every base, arm of MAIN_ARMS and metric, in percent, with the gain's 95% interval.

    Columns: base, arm, metric, base_score, evolved, delta, low, high, seeds, n, interval, source, run_ids.
    `gains`: of the same `measured`, to share its resampled items. Raises Untraceable where a score does not follow
    from its items.
    """
    gains, rows = gains or Gains(measured, resamples), []
    for name, base in measured.bases.items():
        arms = measured.arms(name)
        for arm in arm_order(a for a in arms if a in MAIN_ARMS):
            rows += [_row(base, arm, arms[arm], metric, gains) for metric in METRICS]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


_COLUMNS = ("base", "arm", "metric", "base_score", "evolved", "delta", "low", "high", "seeds", "n", "interval",
            "source", "run_ids")


def _row(base: Measurement, arm: str, runs: list[Run], metric: str, gains: Gains) -> dict[str, Any]:
    before = 100 * float(base.values(metric).mean())
    found: Gain = gains.over_base(base, runs, metric)
    return {"base": base.name, "arm": arm, "metric": metric, "base_score": before, "evolved": before + found.delta,
            "delta": found.delta, "low": found.low, "high": found.high, "seeds": len(runs), "n": found.n,
            "interval": found.interval, "source": "measured", "run_ids": " ".join(run.name for run in runs)}


def _percent(found: Interval) -> dict[str, Any]:
    parts = asdict(found)
    scaled = {key: 100 * parts[key] for key in ("delta", "low", "high")}
    return scaled | {"seeds": found.n_seeds, "n": found.n_items, "interval": found.note}


def contrast_table(measured: Measured, *, resamples: int = 10_000) -> pd.DataFrame:
    """Differences that a gain must be read beside: method - random, oracle - method, method - base's best decoding.

    The last one compares drawings of the evolved model at default decoding with the base at its best decoding:
    training sharpens, and so does decoding. Columns as `joint_table`, `contrast` in place of arm.
    """
    rows = []
    for name, base in measured.bases.items():
        arms = measured.arms(name)
        joint = arms.get("joint", [])
        for first, second in (("joint", "random"), ("oracle", "joint")):
            if first in arms and second in arms:
                rows += [_contrast(base, arms[first], arms[second], f"{first} - {second}", m, resamples)
                         for m in CONTRASTS]
        if joint:
            after = np.stack([run.values("drawings/overall") for run in joint])
            found = over_base(base.values("drawings_best/overall"), after, resamples=resamples)
            rows.append(_contrast_row(name, "joint - base at best decoding", "drawings/overall", found, joint))
    columns = ["base", "contrast", "metric", "delta", "low", "high", "seeds", "n", "interval", "source", "run_ids"]
    return pd.DataFrame(rows, columns=columns)


def _contrast(base: Measurement, first: list[Run], second: list[Run], name: str, metric: str, resamples: int
              ) -> dict[str, Any]:
    a, b = (np.stack([run.values(metric) for run in runs]) for runs in (first, second))
    found = over_arm(a, b, resamples=resamples)
    return _contrast_row(base.name, name, metric, found, [*first, *second])


def _contrast_row(base: str, name: str, metric: str, found: Interval, runs: list[Run]) -> dict[str, Any]:
    return {"base": base, "contrast": name, "metric": metric, **_percent(found), "source": "measured",
            "run_ids": " ".join(run.name for run in runs)}


def premise_table(results: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Premise reports as a frame: base, condition, value, note (all text); results by base name."""
    from asgkit.report.tables.premise import premise_rows

    rows = [(name, *row, "measured") for name, result in results.items() for row in premise_rows(result)]
    return pd.DataFrame(rows, columns=["base", "condition", "value", "note", "source"])


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """The tidy joint table as it is printed: one row per base and metric, one column per arm.

    A cell reads `evolved (delta [low, high])`; every cell must be `measured` and name its runs.
    """
    refuse_untraced(table)
    rows = []
    for (base, metric), group in table.groupby(["base", "metric"], sort=False):
        cells = {r.arm: f"{r.evolved:.1f} ({r.delta:+.1f} [{r.low:+.1f}, {r.high:+.1f}])" for r in group.itertuples()}
        first = group.iloc[0]
        rows.append({"base": base, "metric": metric, "before": f"{first.base_score:.1f}",
                     **cells, "seeds": _seed_text(group), "n": str(first.n)})
    arms = arm_order(table["arm"])
    return texts(rows, ["base", "metric", "before", *arms, "seeds", "n"])


def _seed_text(group: pd.DataFrame) -> str:
    counts = sorted(set(group["seeds"]))
    text = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    return text + (" (items only)" if counts[0] == 1 else "")


def texts(lines: Sequence[Mapping[str, str]], columns: Sequence[str]) -> pd.DataFrame:
    """Lines of texts as a frame; a line without a column has `-` there."""
    return pd.DataFrame([[line.get(name, "-") for name in columns] for line in lines], columns=list(columns), dtype=str)


def refuse_untraced(table: pd.DataFrame) -> None:
    """Raise Untraceable for any row whose source is not `measured` or that names no run."""
    bad = table[(table["source"] != "measured") | (table["run_ids"].fillna("").str.strip() == "")]
    if len(bad):
        first = bad.iloc[0]
        raise Untraceable(f"{len(bad)} row(s) without measured runs behind them, the first: {first.to_dict()}")


def to_markdown(table: pd.DataFrame, caption: str) -> str:
    """A frame of texts as a Markdown table under its caption."""
    lines = [caption, "", "| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def to_latex(table: pd.DataFrame, caption: str) -> str:
    """A frame of texts as a booktabs table; special characters are escaped."""
    head = " & ".join(_tex(name) for name in table.columns)
    body = [" & ".join(_tex(str(cell)) for cell in row) + r" \\" for row in table.itertuples(index=False)]
    return "\n".join([r"\begin{table}", rf"\caption{{{_tex(caption)}}}",
                      rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}", r"\toprule", head + r" \\", r"\midrule",
                      *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


_TEX = str.maketrans({"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
                      "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
                      "±": r"$\pm$"})


def _tex(text: str) -> str:
    return text.translate(_TEX)


def to_html(table: pd.DataFrame, caption: str) -> str:
    """A frame of texts as one HTML table under its caption, a line per row; special characters are escaped."""
    row = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"
    return "\n".join(["<table>", f"<caption>{html.escape(caption)}</caption>",
                      f"<thead>{row(table.columns, 'th')}</thead>", "<tbody>",
                      *(row(cells, "td") for cells in table.itertuples(index=False)), "</tbody>", "</table>"]) + "\n"


class Form(StrEnum):
    """What a table can be written as."""

    CSV = "csv"
    MD = "md"
    TEX = "tex"
    HTML = "html"


KEPT = (Form.CSV, Form.MD)  # always written: pages link the one and are filled from the other
ON_DEMAND = {Form.TEX: to_latex, Form.HTML: to_html}


def forms_of(text: str) -> tuple[Form, ...]:
    """The forms that a list such as `csv,md,tex` names, and those of KEPT; ValueError for a name that is none."""
    named = [part.strip().lower() for part in text.split(",") if part.strip()]
    if unknown := [name for name in named if name not in list(Form)]:
        raise ValueError(f"unknown format {unknown[0]!r}; choose among {', '.join(Form)}, with commas between them")
    return tuple(form for form in Form if form in KEPT or form in named)


def write_shown(shown: pd.DataFrame, stem: Path, caption: str, forms: Sequence[Form] = KEPT) -> tuple[Path, list[Path]]:
    """Write a frame of texts as `<stem>.md`, and as those of `forms` that are made on demand; returns (md, others)."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    texts = {Form.MD: to_markdown} | {form: write for form, write in ON_DEMAND.items() if form in forms}
    paths = {form: stem.with_name(f"{stem.name}.{form}") for form in texts}
    for form, path in paths.items():
        path.write_text(texts[form](shown, caption), encoding="utf-8")
    return paths.pop(Form.MD), list(paths.values())


def save_table(tidy: pd.DataFrame, shown: pd.DataFrame, stem: Path, caption: str, record: dict[str, Any],
               forms: Sequence[Form] = KEPT) -> list[Path]:
    """Write `<stem>.csv` (tidy), `.md` (as shown), the other `forms` and `.json` (provenance); returns their paths.

    The provenance hashes the CSV and the Markdown alone, so that forms on demand change no committed file.
    """
    markdown, others = write_shown(shown, stem, caption, forms)
    csv = stem.with_name(stem.name + ".csv")
    write_csv(tidy, csv)
    return [csv, markdown, *others, write_sidecar(stem, record, [csv, markdown])]

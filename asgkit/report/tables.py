"""Measured tables: one tidy frame, from it CSV, Markdown and LaTeX. A cell without its items is refused."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from asgkit.report.measured import Measured, Measurement, Run, Untraceable, same_items
from asgkit.report.provenance import write_sidecar
from asgkit.report.stats import Interval, difference_between_arms, paired_bootstrap
from asgkit.report.style import arm_order, write_csv
from asgkit.shapes.benchmark import TAGS
from asgkit.shapes.text import FAMILIES

METRICS = ("answers/single", "answers/canonical", "answers/majority", "answers/sampled", "answers/agreement",
           *(f"answers/{vote}/{family}" for vote in ("single", "majority") for family in FAMILIES),
           *(f"{decoding}/{part}" for decoding in ("drawings", "drawings_best")
             for part in ("overall", *(f"tag/{tag}" for tag in TAGS))))
CONTRASTS = ("answers/single", "answers/canonical", "answers/majority", "drawings/overall", "drawings_best/overall")


def joint_table(measured: Measured, *, resamples: int = 10_000) -> pd.DataFrame:
    """Base -> evolved for every base, arm and metric, in percent, with the gain's 95% interval.

    Columns: base, arm, metric, base_score, evolved, delta, low, high, seeds, n, interval, source, run_ids.
    Learning-rate arms (`lr-*`) are left to their figure. Raises Untraceable where a score does not follow from its
    items.
    """
    rows = []
    for name, base in measured.bases.items():
        arms = measured.arms(name)
        for arm in arm_order(a for a in arms if not a.startswith("lr-")):
            for run in arms[arm]:
                same_items(base, run)
            rows += [_row(base, arm, arms[arm], metric, resamples) for metric in METRICS]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


_COLUMNS = ("base", "arm", "metric", "base_score", "evolved", "delta", "low", "high", "seeds", "n", "interval",
            "source", "run_ids")


def _row(base: Measurement, arm: str, runs: list[Run], metric: str, resamples: int) -> dict[str, Any]:
    before = base.values(metric)
    after = np.stack([run.values(metric) for run in runs])
    found = paired_bootstrap(before, after, resamples=resamples)
    return {"base": base.name, "arm": arm, "metric": metric, "base_score": 100 * before.mean(),
            "evolved": 100 * after.mean(), **_percent(found), "source": "measured",
            "run_ids": " ".join(run.name for run in runs)}


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
            found = paired_bootstrap(base.values("drawings_best/overall"), after, resamples=resamples)
            rows.append(_contrast_row(name, "joint - base at best decoding", "drawings/overall", found, joint))
    columns = ["base", "contrast", "metric", "delta", "low", "high", "seeds", "n", "interval", "source", "run_ids"]
    return pd.DataFrame(rows, columns=columns)


def _contrast(base: Measurement, first: list[Run], second: list[Run], name: str, metric: str, resamples: int
              ) -> dict[str, Any]:
    a, b = (np.stack([run.values(metric) for run in runs]) for runs in (first, second))
    found = difference_between_arms(a, b, resamples=resamples)
    return _contrast_row(base.name, name, metric, found, [*first, *second])


def _contrast_row(base: str, name: str, metric: str, found: Interval, runs: list[Run]) -> dict[str, Any]:
    return {"base": base, "contrast": name, "metric": metric, **_percent(found), "source": "measured",
            "run_ids": " ".join(run.name for run in runs)}


def premise_table(results: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Premise reports as a frame: base, condition, value, note (all text); results by base name."""
    from asgkit.premise import premise_rows

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
    return pd.DataFrame(rows, columns=["base", "metric", "before", *arms, "seeds", "n"]).fillna("-")


def _seed_text(group: pd.DataFrame) -> str:
    counts = sorted(set(group["seeds"]))
    text = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    return text + (" (items only)" if counts[0] == 1 else "")


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


def save_table(tidy: pd.DataFrame, shown: pd.DataFrame, stem: Path, caption: str, record: dict[str, Any]) -> list[Path]:
    """Write `<stem>.csv` (tidy), `.md`, `.tex` (as shown) and `.json` (provenance); returns their paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    csv, md, tex = (stem.with_name(stem.name + suffix) for suffix in (".csv", ".md", ".tex"))
    write_csv(tidy, csv)
    md.write_text(to_markdown(shown, caption), encoding="utf-8")
    tex.write_text(to_latex(shown, caption), encoding="utf-8")
    return [csv, md, tex, write_sidecar(stem, record, [csv, md, tex])]

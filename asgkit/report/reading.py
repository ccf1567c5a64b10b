"""Small views of results for readers: ends of plotted lines, verdicts of a few claims, what flipped, tables to show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown

from asgkit.report.claims.claims import Claim, as_json, assess_all, effect, load_claims
from asgkit.report.measured import Measured
from asgkit.report.tables.tables import to_markdown
from asgkit.stats.intervals import holm, mcnemar

CLAIM_COLUMNS = ("claim", "comparison", "effect [95%]", "n", "seeds", "verdict")
FLIP_COLUMNS = ("group", "n", "fixed", "broken", "net", "p", "holm")
EVERY = "all"


def shown(frame: pd.DataFrame, caption: str, digits: int = 1) -> Markdown:
    """A frame as a table under its caption; numbers to `digits` decimals, `-` where there is none."""
    texts = frame.copy().astype(object)
    for name in frame.columns:
        texts[name] = [_text(value, digits) for value in frame[name]]
    return Markdown(to_markdown(texts, caption))


def _text(value: object, digits: int) -> str:
    if isinstance(value, (float, np.floating)):
        return "-" if np.isnan(value) else f"{round(float(value), digits) + 0.0:.{digits}f}"
    return str(value)


def line_ends(points: pd.DataFrame, by: Sequence[str], value: str = "value", at: str = "step") -> pd.DataFrame:
    """First and last plotted mean of each line of a figure; columns `by`, first, last.

    points: the frame of plotted points that a figure function returns. Where nothing was drawn, its column `missing`,
    which names the command that fills the panel. Panels without points are left out of the others.
    """
    if "kind" not in points:
        return points[["missing"]]
    means = points[points["kind"] == "mean"].sort_values(at, kind="stable")
    return means.groupby(list(by), sort=False)[value].agg(["first", "last"]).reset_index()


def claim_lines(results_dir: str | Path, measured: Measured, ids: Sequence[str], bases: Sequence[str] = ()
                ) -> pd.DataFrame:
    """Every comparison of the claims `ids` of `<results_dir>/claims.yaml`, judged against `measured` as it is now.

    bases: show comparisons on these only; none means all. Columns CLAIM_COLUMNS; a comparison without runs has an
    empty effect. Raises KeyError for an id that the file does not have, and as `load_claims` and `assess`.
    """
    held = {claim.id: claim for claim in load_claims(Path(results_dir) / "claims.yaml")}
    if unknown := [name for name in ids if name not in held]:
        raise KeyError(f"no claim {unknown[0]!r} in {results_dir}/claims.yaml; it has {', '.join(held)}")
    claims = [_narrowed(held[name], bases or held[name].rule.bases) for name in ids]
    content = as_json(assess_all([claim for claim in claims if claim.rule.bases], measured), measured)
    rows = [(claim["id"], part["what"], effect(part), part["n_items"], part["n_seeds"], part["verdict"])
            for claim in content["claims"] for part in claim["comparisons"]]
    return pd.DataFrame(rows, columns=list(CLAIM_COLUMNS))


def _narrowed(claim: Claim, bases: Sequence[str]) -> Claim:
    kept = [base for base in claim.rule.bases if base in bases]
    return claim.model_copy(update={"rule": claim.rule.model_copy(update={"bases": kept})})


def flips(groups: np.ndarray, before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
    """What turned right and what turned wrong, for all items and per group; columns FLIP_COLUMNS.

    fixed: wrong before and right after; broken: the reverse; net: their difference in points of n. p: exact McNemar
    test that as many are fixed as broken; holm: the same, adjusted for the number of groups (the line of all items is
    not one of them: NaN). Items must be independent of each other. Shapes: (Q,), bool (Q,), bool (Q,). Raises
    ValueError when they differ.
    """
    groups, before, after = np.asarray(groups), np.asarray(before, bool), np.asarray(after, bool)
    if not groups.shape == before.shape == after.shape or groups.ndim != 1:
        raise ValueError(f"flips needs three arrays (Q,), got {groups.shape}, {before.shape} and {after.shape}")
    names = list(dict.fromkeys(groups.tolist()))
    rows = [_flips(EVERY, before, after), *(_flips(name, before[groups == name], after[groups == name])
                                            for name in names)]
    adjusted = holm([row[-1] for row in rows[1:]])
    return pd.DataFrame([(*row, p) for row, p in zip(rows, [np.nan, *adjusted], strict=True)],
                        columns=list(FLIP_COLUMNS))


def _flips(name: str, before: np.ndarray, after: np.ndarray) -> tuple[str, int, int, int, float, float]:
    fixed, broken, count = int((~before & after).sum()), int((before & ~after).sum()), len(before)
    return name, count, fixed, broken, 100.0 * (fixed - broken) / count, mcnemar(before, after)

"""A premise report as rows: what `asgkit premise` prints and the table of the premise shows."""

from __future__ import annotations

from typing import Any


def premise_rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The rows of a premise: (condition, value, why it matters), all text."""
    a, d, r = result["answers"], result["detectors"], result["reward"]
    gap, flat, drawn = a["majority_minus_single"], d["unanimous"], result["drawn_images"]
    rows = [
        ("one framing, mean", _show(a["single"], "%"), f"canonical {_show(a['canonical'], '%')}, n {a['n']}"),
        ("majority of framings", _show(a["majority"], "%"), f"sampled answers {_show(a['sampled'], '%')}"),
        ("majority - single", f"{gap['delta']:+.1f} ± {gap['se']:.1f}", "what the vote can teach the Solver"),
    ]
    for name in ("canonical", "majority"):
        found = d[name]
        rows += [(f"AUROC wrong {name}: H_sc", _show(found["h_sc"]), f"sampled votes {_show(found['h_sc_sampled'])}"),
                 (f"AUROC wrong {name}: STE", _show(found["ste"]), f"{found['wrong']} wrong answers")]
    rows += [("STE among unanimous", _show(flat["majority_ste"]),
              f"{flat['n']} votes, {_show(flat['majority_wrong_share'], '%')} of them wrong"),
             ("Solver on drawings", _show(drawn["majority"], "%"), f"{drawn['n']} questions; what R_g rests on"),
             ("drawings correct", _show(result["drawings"]["overall"], "%"), "room to move in both directions"),
             ("cards past the gate", _show(r["pass_rate"], "%"), f"{r['used']} of {r['groups']} groups used")]
    rows += [(f"rank corr. {name}", _show(c["mean"]), f"with the truth in {c['groups']} groups, se "
              + _show(c["standard_error"])) for name, c in r["spearman"].items()]
    if best := r["best_of"]:
        rows.append((f"best of {best['candidates']} by R_g", _show(best["by_reward"], "%"),
                     f"mean {_show(best['mean'], '%')}, oracle {_show(best['oracle'], '%')}"))
    oracle = result.get("oracle_gain", {"runs": [], "gains": {}})  # there once `oracle_gain` was asked for
    rows += [(f"oracle gain {key}", f"{g['delta']:+.1f} [{g['low']:+.1f}, {g['high']:+.1f}]",
              f"runs {' '.join(oracle['runs'])}") for key, g in oracle["gains"].items()]
    return rows


def _show(value: float | None, unit: str = "") -> str:
    if value is None:
        return "undefined"
    return f"{value:.1f}{unit}" if unit else f"{value:.3f}"

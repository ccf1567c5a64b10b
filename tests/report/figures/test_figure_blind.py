"""The figure of blind baselines: its points are the rows of blind.csv."""

import figure_data as data
import pytest

from asgkit.evals.blind import MODES, write_blind
from asgkit.report.figures import blind as figures_blind
from asgkit.report.measured import load_measured


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    root = data.make_results(tmp_path_factory.mktemp("blind") / "results")
    for seed in range(3):
        rows = lambda step, seed=seed: [{"mode": mode, "family": family, "value": 10 * i + seed + step / 10}
                                        for i, mode in enumerate((*MODES, "commonest")) for family in ("all", "count")]
        path = root / "measured" / "runs" / f"{data.CLEAN[0]}-joint-s{seed}" / "blind.csv"
        write_blind(path, [(step, rows(step)) for step in (0, 50)])
    return load_measured(root)


def test_points_are_the_rows_and_their_means(measured):
    _, points, used = figures_blind.blind_baselines(measured)
    own = points[points["panel"] == data.CLEAN[0]]
    seeds = own[(own["kind"] == "seed") & (own["series"] == "blank") & (own["step"] == 50)]
    assert seeds["value"].tolist() == [25.0, 26.0, 27.0]
    mean = own[(own["kind"] == "mean") & (own["series"] == "blank") & (own["step"] == 50)]
    assert mean["value"].tolist() == [26.0] and mean["low"].item() < 25
    assert own[own["series"] == "commonest"]["value"].tolist() == [40.0]
    assert len(used) == 3 and all(run.arm == "joint" for run in used)
    assert "blind.csv" in {path.name for run in used for path in run.evidence()}


def test_bases_without_the_file_name_the_command(measured):
    _, points, _ = figures_blind.blind_baselines(measured)
    assert "asgkit batch headline" in " ".join(points["missing"].dropna())

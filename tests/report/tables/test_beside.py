"""What a gain stands beside: untrained decodings, controls, single seeds."""

import numpy as np
import pytest
import report_data as data

from asgkit.report.measured import Untraceable, load_measured
from asgkit.report.tables.beside import CONTROLS, beside_shown, beside_table, best_free, seed_gains
from asgkit.report.tables.gains import Gains


@pytest.fixture
def measured(tmp_path):
    """Seeds 0 and 1 of joint, one run each of random and oracle; the base's canonical framing is always right."""
    results = data.make_results(tmp_path / "results")
    path = results / "measured" / "base" / data.BASE
    for name in path.iterdir():
        name.unlink()
    path.rmdir()
    items = data.make_items(1)
    items["canonical"][:] = True
    items["drawings"][:] = False
    data.write_measurement(path, items, 0)
    return load_measured(results)


def test_the_best_untrained_score_is_chosen_among_ways_on_the_same_items(measured):
    base = measured.bases[data.BASE]
    assert best_free(base, "answers/single") == best_free(base, "answers/majority") == "answers/canonical"
    assert best_free(base, "drawings/overall") == best_free(base, "drawings_best/overall") == "drawings_best/overall"
    assert best_free(base, "drawings/tag/two") == "drawings_best/tag/two"
    by_family = {name: base.values(name).mean() for name in ("answers/single/color", "answers/majority/color")}
    assert best_free(base, "answers/single/color") == max(by_family, key=by_family.get)
    with pytest.raises(KeyError, match="no way to decode"):
        best_free(base, "captions/overall")


def test_what_training_gives_over_a_choice_of_decoding(measured):
    gains = Gains(measured, 300)
    table = beside_table(measured, gains, [data.BASE, "tiny-flow-clean"], ["answers/single", "drawings/overall"])
    assert list(table["base"]) == [data.BASE] * 2  # a base that was not measured has no rows
    row = table.iloc[0]
    joint = measured.arms(data.BASE)["joint"]
    evolved = 100 * np.mean([run.values("answers/single").mean() for run in joint])
    assert row.evolved == pytest.approx(evolved) and row.free_score == 100.0
    assert row.over_free == pytest.approx(evolved - 100.0) and row.over_free_low <= row.over_free <= row.over_free_high
    plain = gains.over_base(measured.bases[data.BASE], joint, "answers/single")
    assert (row.delta, row.low, row.high) == (plain.delta, plain.low, plain.high)
    for arm in CONTROLS:
        assert row[f"{arm}_seeds"] == 1 and f"{data.BASE}-{arm}-s0" in row.run_ids


def test_the_printed_line_names_seeds_and_what_is_not_measured(measured):
    gains = Gains(measured, 200)
    table = beside_table(measured, gains, [data.BASE], ["answers/single"], arm="lr-5e-3")
    line = beside_shown(table).iloc[0]
    assert line["seeds"] == "1" and line["n"] == "28" and "answers/canonical" in line["base, best untrained"]
    assert line["random"].endswith("(1)")
    table["oracle_seeds"] = 0
    assert beside_shown(table).iloc[0]["oracle"] == "not measured"
    with pytest.raises(Untraceable):
        beside_shown(table.assign(source="reported"))


def test_every_run_has_its_own_gain(measured):
    found = seed_gains(measured, data.BASE, ["joint", "nothing", "oracle"], ["answers/majority"])
    assert list(zip(found["arm"], found["seed"], strict=True)) == [("joint", 0), ("joint", 1), ("oracle", 0)]
    run, base = measured.arms(data.BASE)["joint"][1], measured.bases[data.BASE]
    by_hand = 100 * (run.values("answers/majority").mean() - base.values("answers/majority").mean())
    assert found["delta"][1] == pytest.approx(by_hand)
    with pytest.raises(KeyError):
        seed_gains(measured, "tiny-flow-clean", ["joint"], ["answers/majority"])

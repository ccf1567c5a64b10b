"""Packed logs: lossless but for what can be derived, deterministic, and laid out field by field."""

import json
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgkit.recipes.asg_fields import FIELDS
from asgkit.runs.packed_log import DERIVED, NAME, from_columns, pack_log, read_packed_log, to_columns

U = [{"step": 1, "phase": "U", "x": [0.25, None]}, {"step": 1, "phase": "U", "x": []}]
G = [{"step": 2, "phase": "G", "prompt": "é \u2028 ✓"}]


def test_the_layout_by_hand():
    lines = [json.loads(line) for line in to_columns([*U, *G, U[0]]).rstrip(b"\n").split(b"\n")]
    assert lines == [[[0, 2], [1, 1], [0, 1]],
                     {"step": [1, 1, 1], "phase": ["U", "U", "U"], "x": [[0.25, None], [], [0.25, None]]},
                     {"step": [2], "phase": ["G"], "prompt": ["é \u2028 ✓"]}]


values = (st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
          | st.text(max_size=3) | st.just([]) | st.just([0.5, "x", None]))
records = st.lists(st.dictionaries(st.sampled_from(["step", "a", "b/c"]), values, min_size=1, max_size=3), max_size=5)


@given(records)
def test_columns_and_back_is_the_same_to_the_letter(held):
    text = [json.dumps(record) for record in held]
    assert [json.dumps(record) for record in from_columns(to_columns(held))] == text


def test_a_packed_log_lacks_what_can_be_derived_and_nothing_else(tmp_path):
    path = tmp_path / NAME
    held = [{**G[0], "generator/seeds": [5], "generator/rewards": [0.1, 1e-7]}]
    pack_log(held, path)
    assert read_packed_log(path) == [{**G[0], "generator/rewards": [0.1, 1e-7]}]
    assert set(DERIVED) <= set(FIELDS)


def test_equal_records_give_equal_bytes_and_damage_is_found(tmp_path):
    first, second = tmp_path / "a.xz", tmp_path / "b.xz"
    pack_log([*U, *G], first)
    pack_log(iter([*U, *G]), second)
    assert first.read_bytes() == second.read_bytes()
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(bytes(content))
    with pytest.raises(lzma.LZMAError):
        read_packed_log(first)


def test_a_log_with_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        pack_log([{"step": 1, "x": float("nan")}], tmp_path / NAME)

"""The arrows between the rooms run down, and there is no circle: the contracts of pyproject.toml hold."""

import subprocess
import sys
from pathlib import Path

from paths import ROOT

import asgkit

MOST = 16  # files side by side that a reader can still take in


def test_the_contracts_hold() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 kept, 0 broken" in done.stdout


def test_no_room_is_crowded() -> None:
    rooms: dict[Path, int] = {}
    for path in Path(asgkit.__file__).parent.rglob("*.py"):
        rooms[path.parent] = rooms.get(path.parent, 0) + 1
    assert {str(room): count for room, count in rooms.items() if count > MOST} == {}

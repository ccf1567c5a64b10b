"""Where a report puts what it makes, below the folders of results and of figures; the same in every profile."""

from __future__ import annotations

from pathlib import Path

from asgkit.report.figures.captions import CAPTIONS

PAGE = "README.md"  # of every folder that has a page
TABLES = Path("measured", "tables")  # below results: what was measured
LAYOUTS = Path("paper", "tables")  # below results: the published tables as they were printed
FIGURES = tuple(dict.fromkeys(caption.folder for caption in CAPTIONS.values()))  # below figures


def figure_place(figures: Path, kind: str, base: str = "") -> Path:
    """The path of a figure without its suffix; KeyError for a kind that has no caption."""
    return figures / CAPTIONS[kind].folder / (f"{kind}_{base}" if base else kind)


def made_folders(root: Path) -> list[Path]:
    """The folders of a clone that a report fills, each with an index page of its own."""
    return [*(root / "figures" / name for name in FIGURES), root / "results" / TABLES, root / "results" / LAYOUTS]

"""What the notebooks share: helpers, exercises. `from asgkit.lessons import check, plt` gets the helpers."""

from asgkit.lessons.helpers import (
    COLORS,
    check,
    describe,
    pictures,
    plt,
    sample_scenes,
    show_grid,
    start_notebook,
)

__all__ = ["COLORS", "check", "describe", "pictures", "plt", "sample_scenes", "show_grid", "start_notebook"]

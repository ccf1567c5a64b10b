"""Figures: `data -> Figure`, pure, with the plotted points beside it."""

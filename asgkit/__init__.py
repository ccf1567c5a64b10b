"""asgkit: learn, check and extend *Ask, Solve, Generate* (arXiv 2606.27376)."""

__version__ = "0.1.0"

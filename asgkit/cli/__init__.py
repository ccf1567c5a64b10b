"""The command line: `app` and one module per group of commands."""

from asgkit.cli.app import app

__all__ = ["app"]

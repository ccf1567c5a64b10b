"""Statistics, tables and figures made from run logs and per-item results."""

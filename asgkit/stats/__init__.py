"""Numbers in, numbers out: intervals, tests, correlations, exact rounding."""

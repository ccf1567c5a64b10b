"""Whole experiments: batches of runs, premises, evaluations, benchmarks of speed, and `asgkit reproduce`."""

"""Benchmark runners. They know the truth, so the self-evolving loop never imports them."""

"""The procedural world: scenes, text about them, an exact detector and held-out benchmarks.

Everything here knows the truth about its pictures. It serves the pre-training of the tiny bases and evaluation;
the self-evolving loop (`ask`, `solve`, `ste`, `draw`, `updates`, `trainer`, `pool`) never imports it, and
`tests/test_no_labels.py` proves that.
"""

"""The second world: bright and dark objects, numbers, answers of several words, questions that may have no answer.

Like `asgkit.shapes`, everything here knows the truth about its pictures: it serves the pre-training of the tiny bases
and evaluation, and the self-evolving loop never imports it (`tests/test_no_labels.py`).
"""

"""Unlabelled data: a folder of pictures."""

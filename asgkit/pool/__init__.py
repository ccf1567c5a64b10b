"""Unlabelled data: pictures of a folder or a data set, prompts of a data set or a text file."""

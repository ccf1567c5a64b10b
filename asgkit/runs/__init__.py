"""A run on disk: directory, checkpoints, log and its schema, samples."""

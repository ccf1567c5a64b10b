"""Pages that are filled from tables."""

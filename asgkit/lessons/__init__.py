"""What the notebooks share: helpers, exercises, verdicts."""

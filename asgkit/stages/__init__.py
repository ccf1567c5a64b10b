"""What the roles do with a model, in batches: propose, answer, caption, draw, judge."""

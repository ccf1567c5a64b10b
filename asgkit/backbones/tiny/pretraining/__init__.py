"""How the tiny bases are made: labelled batches of a world, and the stages that learn from them."""

"""Claims of the paper, a rule for each, and the verdict that the measured numbers give."""

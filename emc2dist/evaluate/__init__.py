"""Measures of a representation: numbers in, a number out. Which images take part is `emc2dist.train.evaluation`'s."""

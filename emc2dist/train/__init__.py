"""One worker's work: a step, the loop over steps, its checkpoints and its evaluation. No Ray here."""

"""What is learnt, and from what: the encoder, the views and the optimiser. Nothing here knows of ranks or chains."""

"""Published training logs read again: what the theory and the loss predictor say about them."""

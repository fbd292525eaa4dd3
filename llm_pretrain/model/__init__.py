"""The decoder, its cost in closed form, and its exchange with Hugging Face checkpoints."""

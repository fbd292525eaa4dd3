"""Plans a run before it starts: memory, traffic and speed, from the config alone."""

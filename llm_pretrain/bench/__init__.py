"""How fast this machine trains: its own rates, whole steps of the engine, and where time goes."""

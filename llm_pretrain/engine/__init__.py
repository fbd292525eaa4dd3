"""How model and optimizer live on the devices, behind one protocol."""

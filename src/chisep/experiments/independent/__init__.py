"""Independent bench: methods on phantoms that share no code with the simulator or the training data."""

"""Several head orientations of a participant: registration, COSMOS, and labels for training."""

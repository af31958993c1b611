"""Trained networks: architectures, weights, and inference on whole volumes."""

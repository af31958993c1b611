"""Simulated lesions."""

"""Robust statistics."""

MAD_TO_SD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation (MAD)."""

"""Reproducibility: one head in several protocols, on two scanners, in three runs; region means compared."""

from chisep.experiments.reproducibility.command import ReproducibilityConfig, reproducibility

__all__ = ["ReproducibilityConfig", "reproducibility"]

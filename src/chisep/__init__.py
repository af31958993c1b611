"""χ-separation: maps of paramagnetic (iron) and diamagnetic (myelin) susceptibility from MRI."""

__version__ = "0.1.0"

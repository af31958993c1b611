"""Head orientations from raw scans: registration, χ, labels, interpolation, adaptation of a network."""

"""Formats on disk: NIfTI, BIDS, atomic files."""

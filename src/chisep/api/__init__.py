"""The commands on single maps, for Python: NIfTI paths, nibabel images or arrays in, nibabel images out."""

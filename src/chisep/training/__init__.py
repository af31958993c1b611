"""Training: crops of labelled maps, losses, the Lightning module, recipes."""

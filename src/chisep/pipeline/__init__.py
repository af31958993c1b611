"""The session pipeline: stages, cache, outputs."""

"""Region labels, atlas registration and region statistics."""

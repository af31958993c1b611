"""The whole chain over the whole brain: raw scans of digital phantoms, `chisep run`, and the truth."""

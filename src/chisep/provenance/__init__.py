"""Stage records: reading them, explaining them, and the methods text made from them."""

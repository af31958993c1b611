"""Digital heads: anatomy, tissue, a scanner, and the BIDS dataset they make."""

"""Digital phantoms: anatomy, tissue, scanner and BIDS datasets."""

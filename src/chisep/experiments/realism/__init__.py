"""Digital phantoms compared with published measurements: percentiles, regional means, spectra."""

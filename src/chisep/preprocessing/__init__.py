"""From scanner images to maps: mask, field, background removal, relaxation rates, resampling."""

"""One-shot pruning of trained networks, from magnitudes or calibration data."""

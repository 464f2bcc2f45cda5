"""After training: pruning in one shot, from magnitudes or calibration."""

"""Export of a trained network to one file, without its zeros."""

"""One file for a trained network: written whole, and without its zeros."""

"""Code shared by several examples."""

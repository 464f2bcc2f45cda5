"""Files that are on the disk completely or not at all, even after a power failure."""

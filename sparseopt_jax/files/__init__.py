"""Files that are on the disk whole, also after a power failure, or not at all."""

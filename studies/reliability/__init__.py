"""Whether runs survive: kills, full disks, power cuts, and numbers that are none."""

"""Whether runs survive kills, full disks, power failures and non-finite gradients."""

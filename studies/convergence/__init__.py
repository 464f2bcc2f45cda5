"""Does correcting gradients help, and when."""

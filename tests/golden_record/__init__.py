"""A record of the results of every method, and commands to compare with it."""

"""The record of what every method does, and the commands that compare by it."""

"""A language model that stores only its active blocks."""

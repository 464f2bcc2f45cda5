"""A language model of which the active blocks alone are kept."""

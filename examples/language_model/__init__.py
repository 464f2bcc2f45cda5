"""A small language model: dense Adam, sparse Adam, SMET."""

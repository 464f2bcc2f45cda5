"""A module for each page of the docs that has tables."""

"""Decisions about a leaf from its shape: axes, eligibility, budgets, structures."""

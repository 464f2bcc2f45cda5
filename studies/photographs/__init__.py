"""Corrections of gradients, compared on photographs of clothes."""

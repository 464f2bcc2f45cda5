"""Masks in an optimizer's state: the state itself, forms of storage, finding owners."""

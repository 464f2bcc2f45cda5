"""What an accelerator is asked for, in one call of a few minutes."""

"""Programs of one page each."""

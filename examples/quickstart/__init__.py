"""Programs of a page each."""

"""The step: the owner of the masks around an optimizer, in graph or host-driven."""

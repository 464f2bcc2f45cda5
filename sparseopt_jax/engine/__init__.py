"""The training step of masks around an optimizer, compiled or driven by the host."""

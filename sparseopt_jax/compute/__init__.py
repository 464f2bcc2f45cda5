"""Computing with the active blocks of compact kernels."""

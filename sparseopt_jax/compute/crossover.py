"""Where products with compact kernels pay by block.

Measured on CPUs, a product with both gradients by block against the dense array that is
made of the blocks first, 1024x1024 and 1024x4096 in float32. Of accelerators the table
knows nothing: there ``measure=True`` does.
"""

from sparseopt_jax.compute.kernel_products import BlockShape

_FEW_SAMPLES = 64

# From the shorter extent of a block to the least sparsity at which it pays: for few
# samples, and for more.
_LEAST_SPARSITY = {16: (0.7, 0.9), 32: (0.5, 0.8), 64: (0.5, 0.7), 128: (0.5, 0.6)}


def least_sparsity(shape: BlockShape) -> float:
    """The fraction of blocks that have to be inactive for blocks to pay; 1 if none."""
    fitting = [size for size in _LEAST_SPARSITY if size <= min(shape.block)]
    if not fitting:
        return 1.0
    few, many = _LEAST_SPARSITY[max(fitting)]
    return few if shape.samples <= _FEW_SAMPLES else many


def pays(shape: BlockShape) -> bool:
    """Return whether a product is faster by block than with the dense array.

    Args:
      shape: the product's.
    """
    # The numbers of blocks are rounded: 0.9 of 1,024 blocks are 922 or 921.
    return shape.sparsity >= least_sparsity(shape) - 0.005

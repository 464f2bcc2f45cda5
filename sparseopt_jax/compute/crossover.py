"""When products with compact kernels are faster by block.

The table was measured on CPUs, in float32 with kernels of 1024x1024 and 1024x4096: a
product with both gradients, by block and with a dense array that is first built from
the blocks. It does not cover accelerators, for which there is ``measure=True``.
"""

from sparseopt_jax.compute.kernel_products import BlockShape

_FEW_SAMPLES = 64

# The smallest sparsity at which a product by block is faster, by the shorter extent of
# a block: for few samples, and for more.
_LEAST_SPARSITY = {16: (0.7, 0.9), 32: (0.5, 0.8), 64: (0.5, 0.7), 128: (0.5, 0.6)}


def least_sparsity(shape: BlockShape) -> float:
    """Return the smallest sparsity at which blocks are faster; 1 if they never are."""
    fitting = [size for size in _LEAST_SPARSITY if size <= min(shape.block)]
    if not fitting:
        return 1.0
    few, many = _LEAST_SPARSITY[max(fitting)]
    return few if shape.samples <= _FEW_SAMPLES else many


def pays(shape: BlockShape) -> bool:
    """Return whether a product is faster by block than with the dense array.

    Args:
      shape: the shape of the product.
    """
    # Numbers of blocks are rounded: 0.9 of 1,024 blocks are 922 or 921.
    return shape.sparsity >= least_sparsity(shape) - 0.005

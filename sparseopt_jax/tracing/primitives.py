"""Effects of JAX's primitives, by name: one table for all readers of jaxprs.

Nothing is known of a primitive that is in no set.
"""

# For values, they only call a jaxpr on their operands.
CALLS = frozenset(
    {
        "checkpoint",
        "closed_call",
        "core_call",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "jit",
        "pjit",
        "remat",
        "remat2",
    }
)

# Calls with a custom derivative, and calls whose derivative recomputes the jaxpr.
CUSTOM_CALLS = frozenset(
    {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
)
CHECKPOINTS = frozenset({"checkpoint", "remat", "remat2"})

# Run user code on the host, without an effect that JAX knows.
CALLBACKS = frozenset({"pure_callback"})

# Multiply and add up: if one operand is a kernel, the other holds its inputs.
PRODUCTS = frozenset({"conv_general_dilated", "dot_general"})

# Move numbers or repeat them; the first operand holds the numbers.
MOVES = frozenset(
    {"broadcast_in_dim", "expand_dims", "reshape", "squeeze", "transpose"}
)

# Select numbers of their operands, or put operands together.
PARTS = frozenset(
    {
        "concatenate",
        "dynamic_slice",
        "dynamic_update_slice",
        "gather",
        "pad",
        "rev",
        "slice",
        "split",
        "unstack",
    }
)

# Keep every number in its place, up to its dtype: one result per operand.
KEEPS = frozenset(
    {
        "convert_element_type",
        "copy",
        "copy_p",
        "device_put",
        "mesh_cast",
        "name",
        "optimization_barrier",
        "pvary",
        "reduce_precision",
        "reshard",
        "sharding_constraint",
        "stop_gradient",
    }
)

# Draw random numbers, which depend on the shape of the result.
DRAWS = frozenset(
    {"random_bits", "random_gamma", "rng_bit_generator", "rng_uniform", "threefry2x32"}
)

# Specify where numbers are stored.
PLACES = frozenset({"device_put", "mesh_cast", "reshard", "sharding_constraint"})

# Every entry of the result depends only on the operands' entries in the same place.
# fmt: off
ELEMENTWISE = frozenset({
    "abs", "add", "add_any", "and", "cbrt", "ceil", "clamp", "convert_element_type",
    "copy", "copy_p", "cos", "div", "eq", "erf", "exp", "exp2", "expm1", "floor", "ge",
    "gt", "imag", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt",
    "max", "min", "mul", "ne", "neg", "not", "or", "pow", "real", "reduce_precision",
    "rem", "round", "rsqrt", "select_n", "sharding_constraint", "sign", "sin", "sqrt",
    "square", "stop_gradient", "sub", "tan", "tanh", "xor",
})
# fmt: on

# Remove some axes; every entry of the result depends on a line or plane of entries.
REDUCTIONS = frozenset(
    {
        "argmax",
        "argmin",
        "reduce_and",
        "reduce_max",
        "reduce_min",
        "reduce_or",
        "reduce_prod",
        "reduce_sum",
    }
)

# Every entry of the result depends on a window of entries.
WINDOW_REDUCTIONS = frozenset(
    {"reduce_window_max", "reduce_window_min", "reduce_window_sum"}
)

# %% [markdown]
# # A transformer sparse enough to read
#
# **A transformer with 258 of its 8,576 weights closes 100.0 % of 2,000 new texts
# correctly.** Its embedding has 10 weights left, 7 of them for the two quotes, with
# opposite signs; the letters are almost invisible.
#
# ![The weights that are left](images/weight_sparse_transformer.png)
#
# Gao et al. (2025, [arXiv 2511.13653](https://arxiv.org/abs/2511.13653)) train
# transformers in which almost all weights are zero, and read the circuits that are
# left. This is a toy version: a text has an opening quote, `'` or `"`, somewhere among
# random letters, and the model has to close it with the same one. The paper selects the
# largest weights after every step and lets zeros compete again; here gradual magnitude
# pruning goes from dense to sparse instead.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import sparseopt_jax as so

# %% tags=["parameters"]
STEPS, BATCH, SPARSITY = 600, 64, 0.97

# %%
LENGTH, LETTERS, WIDTH, HEADS = 12, 8, 32, 2
SINGLE, DOUBLE = LETTERS, LETTERS + 1  # tokens of the two quotes; letters come first


def texts(seed, count=BATCH):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(LETTERS, size=(count, LENGTH))
    quotes = rng.integers(SINGLE, DOUBLE + 1, size=count)
    tokens[np.arange(count), rng.integers(LENGTH, size=count)] = quotes
    return tokens, quotes - SINGLE


class Reader(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(LETTERS + 2, WIDTH, name="embed")(tokens)
        x = x + nn.MultiHeadDotProductAttention(
            HEADS, use_bias=False, name="attention"
        )(x)
        y = nn.relu(nn.Dense(2 * WIDTH, use_bias=False, name="up")(x))
        x = x + nn.Dense(WIDTH, use_bias=False, name="down")(y)
        return nn.Dense(2, use_bias=False, name="head")(x.mean(axis=1))


model = Reader()
apply_fn, init = jax.jit(model.apply), jax.jit(model.init)
params = init(jax.random.key(0), texts(0)[0])["params"]

# %% [markdown]
# Embeddings stay dense by default; `include` makes this one sparse as well, so that the
# circuit can be read from the tokens to the answer. `min_fan_in` stays 0: unneeded
# neurons may die.

# %%
topology = so.gradual_magnitude(
    SPARSITY,
    every=STEPS // 50,
    start=STEPS // 10,
    stop=3 * STEPS // 4,
    include="embed/*",
    distribution={"*": SPARSITY},  # the same in all layers, as in the paper
)
schedule = optax.cosine_decay_schedule(1e-2, STEPS)
tx = so.sparsify(optax.adamw(schedule, weight_decay=0.5), topology)
state = so.linen.TrainState.create(apply_fn=model.apply, params=params, tx=tx)
print(so.plan(params, topology))


# %%
def loss_fn(params, batch):
    logits = apply_fn({"params": params}, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


step = jax.jit(so.make_train_step(loss_fn))
for number in range(STEPS):
    state, metrics = step(state, texts(number + 1))

tokens, answers = texts(0, 2_000)
logits = apply_fn({"params": state.params}, tokens)
correct = float((logits.argmax(-1) == answers).mean())
masks = jax.tree.leaves(so.get_masks(state))
active, total = (sum(int(f(x)) for x in masks) for f in (jnp.sum, jnp.size))
print(f"{correct:.1%} of 2,000 new texts are closed correctly")
print(f"{active} of {total:,} weights are active")

# %% tags=["result"]
attention = jax.tree.map(lambda x: x.reshape(WIDTH, WIDTH), state.params["attention"])
kernels = {
    "embedding": state.params["embed"]["embedding"],
    **{name: attention[name]["kernel"] for name in ("query", "key", "value", "out")},
    **{name: state.params[name]["kernel"] for name in ("up", "down", "head")},
}
figure, axes = plt.subplots(2, 4, figsize=(8, 4.4), layout="constrained")
for place, (name, kernel) in zip(axes.flat, kernels.items(), strict=True):
    place.imshow(np.asarray(kernel), cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    place.set(title=f"{name}: {int((kernel != 0).sum())}", xticks=[], yticks=[])

# %% [markdown]
# Which tokens does the model look at? It cannot tell apart tokens whose rows of the
# embedding are zero throughout.

# %%
table = np.asarray(state.params["embed"]["embedding"])
tokens_seen = [*"abcdefgh", "'", '"']
for token, row in zip(tokens_seen, table, strict=True):
    weights = ", ".join(f"channel {n}: {row[n]:+.2f}" for n in np.flatnonzero(row))
    print(f"{token}  {weights or 'nothing'}")

# %% [markdown]
# And who reads these channels?

# %%
channels = np.flatnonzero(table.any(axis=0))
for name, kernel in kernels.items():
    if name in ("query", "key", "value", "up", "head"):
        read = [int(n) for n in channels if np.asarray(kernel)[n].any()]
        print(f"{name} reads channels {read or 'none'}")

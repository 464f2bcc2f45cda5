"""One leaf from its shape: neuron axes, eligibility, budgets, structures, plans."""

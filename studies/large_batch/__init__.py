"""How far batches grow by the optimizers' own rules."""

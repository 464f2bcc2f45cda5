"""Experiments on corrections and large batches; benchmarks hold the timings."""

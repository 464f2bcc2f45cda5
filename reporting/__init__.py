"""Timings, records and their tables: what benchmarks and studies share."""

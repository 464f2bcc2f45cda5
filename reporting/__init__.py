"""Timings, records and their tables, shared by benchmarks and studies."""

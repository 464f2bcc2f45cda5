"""The figures of the SparseOpt paper that take little computing."""

"""The figures of the SparseOpt paper that need little computing."""

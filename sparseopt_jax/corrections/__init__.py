"""SparseOpt and other corrections of sparse neurons' gradients."""

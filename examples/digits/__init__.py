"""A small ResNet on scanned digits, dense and sparse."""

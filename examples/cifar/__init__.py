"""ResNet-20 and WRN-22-2 on CIFAR, with the papers' recipes."""

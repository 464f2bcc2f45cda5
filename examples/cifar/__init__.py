"""ResNet-20 and WRN-22-2 on CIFAR, by the papers' recipes."""

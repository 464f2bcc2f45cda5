"""ResNet-50 on ImageNet, on any mesh and number of processes."""

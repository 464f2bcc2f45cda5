"""Published accuracies for networks and data that need more than a CPU.

Top-1, in percent. Each row gives the command that trains it here.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """A row of a paper's table.

    Attributes:
      what: network, data, method and sparsity.
      numbers: the paper's numbers, one for each length of training; with and without
        the correction if there are two.
      lengths: lengths of the training, in epochs.
      command: trains the first of them here, with the correction if there is one.
    """

    what: str
    numbers: tuple[str, ...]
    lengths: tuple[int, ...]
    command: str


_IMAGENET = {
    ("RigL", 0.9): ("74.41 / 73.88", "75.06 / 74.99", "75.26 / 75.26"),
    ("RigL", 0.95): ("72.93 / 72.33", "73.62 / 73.36", "73.95 / 73.62"),
    ("RigL", 0.97): ("71.15 / 69.94", "72.65 / 72.00", "72.66 / 72.35"),
    ("SET", 0.9): ("74.15 / 73.69", "74.81 / 74.83", "74.85 / 75.17"),
    ("SET", 0.95): ("72.59 / 71.84", "73.75 / 73.51", "73.79 / 73.82"),
    ("SET", 0.97): ("71.43 / 70.12", "72.40 / 72.17", "72.73 / 72.65"),
}
_CIFAR = {
    0.9: ("61.34 / 60.66", "63.12 / 62.93", "64.30 / 63.77", "65.22 / 64.66"),
    0.95: ("56.80 / 55.80", "59.91 / 59.22", "60.67 / 60.00", "61.74 / 61.45"),
    0.97: ("53.95 / 52.53", "57.01 / 54.87", "57.62 / 56.50", "58.35 / 57.32"),
}
_CIFAR_LENGTHS = (100, 200, 300, 500)

SPARSEOPT = (
    *(
        Published(
            f"ResNet-50, ImageNet, {method}, {sparsity:g}",
            numbers,
            (90, 180, 270),
            f"examples.imagenet --recipe sparseopt_90 --sparsity {sparsity:g}"
            + (" --method set" if method == "SET" else ""),
        )
        for (method, sparsity), numbers in _IMAGENET.items()
    ),
    *(
        Published(
            f"ResNet-20, CIFAR-100, RigL, {sparsity:g}",
            numbers,
            _CIFAR_LENGTHS,
            "examples.cifar --recipe sparseopt_cifar100_r20 "
            f"--sparsity {sparsity:g} --seeds 5",
        )
        for sparsity, numbers in _CIFAR.items()
    ),
    Published(
        "ResNet-20, CIFAR-100, RigL + HAM, 0.95",
        ("57.31 / 56.72", "60.41 / 58.76", "60.91 / 60.38", "62.20 / 61.66"),
        _CIFAR_LENGTHS,
        "examples.cifar --recipe sparseopt_ham_cifar100_r20 --seeds 5",
    ),
)


def _wide(what: str, number: str, recipe: str) -> Published:
    return Published(
        f"WRN-22-2, CIFAR-10, {what}",
        (number,),
        (250,),
        f"examples.cifar --recipe {recipe} --seeds 5",
    )


RIGL = (
    *(
        Published(
            f"ResNet-50, ImageNet, {what}, {sparsity:g}",
            (number,),
            (100,),
            f"examples.imagenet --recipe {recipe} --sparsity {sparsity:g}",
        )
        for what, recipe, sparsity, number in (
            ("RigL", "rigl", 0.8, "74.6"),
            ("RigL", "rigl", 0.9, "72.0"),
            ("RigL, ERK", "rigl_erk", 0.8, "75.1"),
            ("RigL, ERK", "rigl_erk", 0.9, "73.0"),
        )
    ),
    _wide("static, 0.8", "91.2", "static_wrn22_2"),
    _wide("SET, 0.8", "92.7", "set_wrn22_2"),
    _wide("RigL, 0.8", "92.6", "rigl_wrn22_2"),
    _wide("RigL, ERK, 0.8", "93.1", "rigl_erk_wrn22_2"),
    _wide("dense", "94.1", "dense_wrn22_2"),
)

# Gains of the correction, in points, with which conditions of ``studies.convergence``
# are compared: ResNet-20's of 100 epochs and more, and SET's of ResNet-50.
GAINS = {
    "RigL, 90 %": 61.34 - 60.66,
    "RigL, 95 %": 56.80 - 55.80,
    "RigL, 97 %": 53.95 - 52.53,
    "RigL, 95 %, 2 x": 59.91 - 59.22,
    "RigL, 95 %, 3 x": 60.67 - 60.00,
    "RigL, 95 %, 5 x": 61.74 - 61.45,
    "SET, 90 %": 74.15 - 73.69,
    "SET, 95 %": 72.59 - 71.84,
    "SET, 97 %": 71.43 - 70.12,
    "RigL, 95 %, HAM": 57.31 - 56.72,
}

# The same for a 90-epoch run on ImageNet at 97 %, after 10, 30 and 60 epochs, read from
# the paper's figure; by the fraction of the training.
EARLY = {1 / 9: 0.443 - 0.334, 1 / 3: 0.524 - 0.479, 2 / 3: 0.627 - 0.600}

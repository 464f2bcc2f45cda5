"""The conditions under which ``studies.photographs`` compares corrections."""

from studies.convergence.conditions import Condition

ARMS = ("none", "fan_in", "batch_variance")
# A least fan-in is our rule against neurons that lose all their inputs.
LEAST_FAN_IN = 2
_NETWORKS = {"resnet": "ResNet", "mlp": "perceptron"}
_METHODS = {"rigl": "RigL", "set": "SET"}


def _condition(
    network: str,
    method: str,
    sparsity: float,
    *,
    length: int = 1,
    min_fan_in: int = 0,
) -> Condition:
    name = f"{_NETWORKS[network]}, {_METHODS[method]}, {100 * sparsity:g} %"
    return Condition(
        name=name
        + (f", least fan-in {min_fan_in}" if min_fan_in else "")
        + (f", {length} x" if length > 1 else ""),
        network=network,
        method=method,
        sparsity=sparsity,
        length=length,
        min_fan_in=min_fan_in,
        like=name if length > 1 else None,
        arms=ARMS,
    )


# In order of worth: a run that is cut short has the first ones.
CONDITIONS = (
    _condition("mlp", "set", 0.98),
    _condition("mlp", "rigl", 0.98),
    _condition("mlp", "rigl", 0.98, min_fan_in=LEAST_FAN_IN),
    _condition("resnet", "rigl", 0.95),
    _condition("resnet", "set", 0.95),
    _condition("resnet", "rigl", 0.98),
    _condition("resnet", "rigl", 0.98, min_fan_in=LEAST_FAN_IN),
    _condition("resnet", "rigl", 0.95, length=3),
    _condition("resnet", "rigl", 0.97),
    _condition("resnet", "set", 0.97),
    _condition("resnet", "set", 0.95, length=3),
    _condition("resnet", "rigl", 0.9),
    _condition("resnet", "set", 0.9),
    _condition("resnet", "rigl", 0.97, length=3),
    _condition("resnet", "set", 0.97, length=3),
    _condition("resnet", "rigl", 0.9, length=3),
    _condition("resnet", "set", 0.9, length=3),
)
# Seeds of every arm; the perceptron's runs are cheap.
SEEDS = {"resnet": 5, "mlp": 10}

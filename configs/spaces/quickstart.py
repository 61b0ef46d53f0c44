"""The search space of configs/quickstart.py.

python launch.py tune --config=configs/quickstart.py --space=configs/spaces/quickstart.py --trials=20
"""

from typing import Any

from cifar_jax.studies.space import choice, log_uniform, uniform


def get_space() -> dict[str, Any]:
    return {
        "batch_size": choice(32, 64, 128),
        "optimizer.learning_rate": log_uniform(3e-4, 3e-2),
        "model.dropout": uniform(0.0, 0.5),
    }

"""The search space of configs/cnn.py: the optimiser with its learning rate, batch size and regularisation.

python launch.py tune --config=configs/cnn.py --space=configs/spaces/cnn.py --config.data.validation=5000
"""

from typing import Any

from cifar_jax.studies.space import alternatives, choice, log_uniform, uniform


def get_space() -> dict[str, Any]:
    return {
        "batch_size": choice(32, 64, 128, 256),
        "model.dropout": uniform(0.0, 0.5),
        "optimizer": alternatives(
            {
                "name": "sgd",
                "learning_rate": log_uniform(1e-3, 1e-1),
                "momentum": choice(0.9, 0.95),
                "weight_decay": log_uniform(1e-5, 1e-2),
            },
            {"name": "adamw", "learning_rate": log_uniform(1e-4, 1e-2), "weight_decay": log_uniform(1e-4, 1e-1)},
        ),
        "schedule.name": choice("constant", "cosine"),
        "augment.flip": choice(0.0, 0.5),
        "augment.crop": choice(0, 2, 4),
    }

"""Two convolutions and a fully connected head with plain SGD: the tutorial recipe.

python launch.py train --config=configs/cnn.py --workdir=runs/cnn
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "epochs": 30,
            "batch_size": 64,
            "data": {"validation": 0, "mean": (0.5,), "std": (0.5,)},
            "model": {"name": "cnn"},
            "optimizer": {"name": "sgd", "learning_rate": 0.001, "momentum": 0.9},
            "schedule": {"name": "constant"},
        }
    )

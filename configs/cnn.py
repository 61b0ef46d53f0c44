"""Two convolutions and a fully connected head with plain SGD: the tutorial recipe.

python launch.py train --config=configs/cnn.py --workdir=runs/cnn --config.seed=0    # and 1, 2

2 CPU cores, 27 s an epoch, 14 minutes: test accuracy 70.40% ± 1.16 (mean and standard deviation, n=3: 69.12, 71.39,
70.70) after 30 epochs on all 50,000 training images. It overfits, and configs/cnn_plus.py adds what usually helps. A
published run of this recipe with its own widths and batch size reports 64.65%.
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

"""ResNet-18 with the CIFAR stem and the usual recipe (cosine, flip and crop).

python launch.py train --config=configs/resnet18.py --workdir=runs/resnet18

Not measured yet: it wants a GPU (a CPU step of 64 images takes 0.7 s on 2 cores).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "epochs": 200,
            "batch_size": 128,
            "model": {"name": "resnet18"},
            "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
            "schedule": {"name": "cosine", "warmup_epochs": 5.0},
            "augment": {"flip": 0.5, "crop": 4},
        }
    )

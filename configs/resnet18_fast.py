"""ResNet-18 in 15 epochs: a triangle for the rate, a smoothed loss, and each image mirrored every other epoch.

python launch.py train --config=configs/resnet18_fast.py --workdir=runs/resnet18_fast

To reach: 93% on the test split, mean over seeds; not measured yet, it wants a GPU. By count 2.5 PFLOP in all, forward
and backward.

The triangle, its peak and the decay are those of Page ("How to Train Your ResNet", 2018: 0.4 and 5e-4 at batch 512, for
94% in 24 epochs with a smaller network); the batch is half of his, and so is the peak. Label smoothing and alternating
flips are Jordan's (2024) for short runs. All 50,000 images and the last epoch's weights; nothing was selected on the
test split. To choose anything, hold images out: --config.data.validation=5000.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "epochs": 15,
            "batch_size": 256,
            "data": {"validation": 0},
            "model": {"name": "resnet18"},
            "optimizer": {"name": "sgd", "learning_rate": 0.2, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
            "schedule": {"name": "linear", "warmup_epochs": 3.0},
            "loss": {"name": "cross_entropy", "label_smoothing": 0.1},
            "augment": {"alternating_flip": 1, "crop": 4},
            "checkpoint": {"every_epochs": 5},
        }
    )

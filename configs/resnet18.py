"""ResNet-18 with the CIFAR stem and the usual recipe: cosine, flip, crop and cutout.

python launch.py train --config=configs/resnet18.py --workdir=runs/resnet18

To reach: 95.5% on the test split, mean over seeds; not measured yet: it wants a GPU (a CPU step of 64 images takes 0.7
to 1.4 s on 2 cores). By count 0.17 PFLOP an epoch, forward and backward. configs/resnet18_fast.py takes 15 epochs.

Batch, rate, momentum, decay, 200 epochs and a cutout of 16 pixels are those of DeVries & Taylor (2017), who report
95.28% without cutout and 96.01% with it, means of five runs. They step the rate; the cosine is that of
kuangliu/pytorch-cifar, with five epochs of warm-up. All 50,000 images and the last epoch's weights; nothing was
selected on the test split. To choose anything, hold images out: --config.data.validation=5000.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "epochs": 200,
            "batch_size": 128,
            "data": {"validation": 0},
            "model": {"name": "resnet18"},
            "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
            "schedule": {"name": "cosine", "warmup_epochs": 5.0},
            "augment": {"flip": 0.5, "crop": 4, "cutout": 16},
            "checkpoint": {"every_epochs": 10},
        }
    )

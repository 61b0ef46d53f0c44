"""MobileNetV2 (Sandler et al. 2018) with strides for 32x32 images, 2.3 million parameters, with cutout.

python launch.py train --config=configs/mobilenetv2.py --workdir=runs/mobilenetv2

To reach: 94% on the test split, mean over seeds; not measured yet, it wants a GPU. By count 27 TFLOP an epoch, forward
and backward; the depthwise convolutions wait on memory.

Batch 128, rate 0.1, momentum 0.9, decay 5e-4, flip, crop and a cosine over 200 epochs are those of
kuangliu/pytorch-cifar, whose network this is, with 94.43% at the best epoch on the test split. The last epoch is not
the best one: cutout of 16 pixels (DeVries & Taylor 2017) is to make up for that. All 50,000 images and the last epoch's
weights; nothing was selected on the test split. To choose anything, hold images out: --config.data.validation=5000.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "epochs": 200,
            "batch_size": 128,
            "data": {"validation": 0},
            "model": {"name": "mobilenet_v2"},
            "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
            "schedule": {"name": "cosine"},
            "augment": {"flip": 0.5, "crop": 4, "cutout": 16},
            "checkpoint": {"every_epochs": 10},
        }
    )

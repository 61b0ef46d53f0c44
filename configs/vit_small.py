"""A small Vision Transformer from scratch: width 192, depth 9, 12 heads, patches of 4 pixels, 2.7 million parameters.

python launch.py train --config=configs/vit_small.py --workdir=runs/vit_small

To reach: 90% on the test split, mean over seeds; not measured yet, it wants a GPU. By count 56 TFLOP an epoch, forward
and backward.

The network, AdamW at 1e-3 with a decay of 0.05, ten epochs of warm-up and a cosine, stochastic depth of 0.1 and label
smoothing of 0.1 are those of Lee et al. (2021, and their code), who report 93.58% after 100 epochs at batch 128. They
mix half of the batches, by mixup or cutmix, and add AutoAugment, random erasing and repeated augmentation; here cutmix
meets every image, RandAugment stands for the rest, and the run is twice as long. The batch is twice theirs at the same
rate; Adam's would grow by the root of two at most. Clipped gradients are a guard. All 50,000 images and the last
epoch's weights; nothing was selected on the test split. To choose anything, hold images out:
--config.data.validation=5000.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "epochs": 200,
            "batch_size": 256,
            "data": {"validation": 0},
            "model": {"name": "vit", "drop_path": 0.1},
            "optimizer": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05},
            "schedule": {"name": "cosine", "warmup_epochs": 10.0},
            "gradient_clip_norm": 1.0,
            "loss": {"name": "cross_entropy", "label_smoothing": 0.1},
            "augment": {"flip": 0.5, "crop": 4, "randaugment": 4.0, "cutmix": 1.0},
            "checkpoint": {"every_epochs": 10},
        }
    )

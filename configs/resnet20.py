"""ResNet-20, 0.27 million parameters: the smallest network of He et al. (2016, section 4.2), fit for a CPU.

python launch.py train --config=configs/resnet20.py --workdir=runs/resnet20

To reach: 91.5% on the test split, mean over seeds; not measured yet. By count 12 TFLOP an epoch, forward and backward.
On 2 CPU cores an image takes 2 to 3.3 ms: 3 to 4.6 hours in all, a third of it with --config.epochs=30.

Batch 128, rate 0.1, momentum 0.9, flip and crop are the paper's, which reports 91.25% after 164 epochs with steps and a
decay of 1e-4. The cosine and the decay of 5e-4 are those of kuangliu/pytorch-cifar; with the like,
chenyaofo/pytorch-cifar-models lists 92.6%. All 50,000 images and the last epoch's weights; nothing was selected on the
test split. To choose anything, hold images out: --config.data.validation=5000.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "epochs": 100,
            "batch_size": 128,
            "data": {"validation": 0},
            "model": {"name": "resnet20"},
            "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
            "schedule": {"name": "cosine"},
            "augment": {"flip": 0.5, "crop": 4},
        }
    )

"""DenseNet-BC of 100 layers, growth 12 (Huang et al. 2017), 0.77 million parameters.

python launch.py train --config=configs/densenet100.py --workdir=runs/densenet100

To reach: 95% on the test split, mean over seeds; not measured yet, it wants a GPU. By count 0.09 PFLOP an epoch,
forward and backward, but its hundred small layers wait on memory and kernel launches, hence the large batch.

The paper (section 4.2) has batch 64, rate 0.1, decay 1e-4, flip and crop, 300 epochs with steps, and 95.49%. Here the
batch is four times as large and so is the rate, with five epochs of warm-up; 200 epochs with a cosine, and twice the
decay for the shorter run. All 50,000 images and the last epoch's weights; nothing was selected on the test split. To
choose anything, hold images out: --config.data.validation=5000.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "epochs": 200,
            "batch_size": 256,
            "data": {"validation": 0},
            "model": {"name": "densenet_bc100_12"},
            "optimizer": {"name": "sgd", "learning_rate": 0.4, "momentum": 0.9, "nesterov": True, "weight_decay": 2e-4},
            "schedule": {"name": "cosine", "warmup_epochs": 5.0},
            "augment": {"flip": 0.5, "crop": 4},
            "checkpoint": {"every_epochs": 10},
        }
    )

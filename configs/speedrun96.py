"""96% in 45 epochs: the recipe of airbench96_faster (K. Jordan, github.com/KellerJordan/cifar10-airbench).

python launch.py train --config=configs/speedrun96.py --workdir=runs/speedrun96

Not measured yet: it wants a GPU.

A small proxy sees each batch of 1024 first; the 512 images on which its loss is highest train the network, and in every
fourth step the proxy too. The numbers, for a loss summed over those 512 images: Nesterov SGD at 9 / 1024 over
1 + 1 / (1 - momentum), the biases of the norms at 64 times that; weight decay 0.012 over the same and over each rate.
Our loss is the mean, and so the rates are times 512 and the decays over 512. The peer's batches run on over the ends of
its epochs; ours leave the last 848 images of each order out, and the 2,160 steps are the same.
"""

from ml_collections import ConfigDict

SELECTED, MOMENTUM = 512, 0.85
SCALE = 1 + 1 / (1 - MOMENTUM)  # how much longer a step is than the gradient, with Nesterov's momentum
RATE, DECAY, BIASES = 9 / 1024 / SCALE, 0.012 / SCALE, 64.0
NORMS = ("group.*/bias", BIASES, 1 / BIASES)


def get_config() -> ConfigDict:
    network = {"name": "speedrun96", "widths": (128, 384, 512)}
    return ConfigDict(
        {
            "epochs": 45,
            "batch_size": 1024,
            "data": {"validation": 0},
            "model": network,
            "selection": {
                "share": 0.5,
                "every": 4,
                "groups": ((".*kernel", 1.0, 1.0), NORMS, ("whitening_bias", 0.0, 0.0)),
            },
            "proxy": {**network, "widths": (32, 64, 64), "depth": 2},
            "optimizer": {
                "name": "sgd",
                "learning_rate": RATE * SELECTED,
                "momentum": MOMENTUM,
                "nesterov": True,
                "weight_decay": DECAY / (RATE * SELECTED),
                "decayed": "all",
            },
            "groups": ((".*(kernel|whitening_bias)", 1.0, 1.0), NORMS),
            "schedule": {"name": "linear", "warmup_epochs": 4.5, "start": 0.2},
            "loss": {"name": "cross_entropy", "label_smoothing": 0.2},
            "augment": {"alternating_flip": 1, "crop": 4, "inner_cutout": 12},
            "lookahead": {"steps": 5, "pull": 1 - 0.95**5, "power": 3.0},
            "evaluation": {"views": "mirror_shift"},
        }
    )

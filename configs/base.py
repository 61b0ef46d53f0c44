"""The defaults of every recipe: a recipe file returns only what it sets otherwise, and no other fields exist.

The sections model, optimizer, schedule and loss name a function of a table (`cifar_jax.models.MODELS`,
`optim.OPTIMIZERS`, `optim.SCHEDULES`, `losses.LOSSES`); their other fields are that function's parameters.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,  # initial weights, order, augmentation, dropout
            "epochs": 30,  # passes over the training set
            "batch_size": 128,  # images a step, over all devices
            "dtype": "auto",  # of activations: float32, bfloat16, float16; auto is bfloat16 but for the CPU's float32
            "init_from": "",  # workdir of another run whose weights to start from; "" starts afresh
            "chunk_epochs": 1,  # epochs compiled as one program, the host only looking on in between
            "data": {
                "name": "cifar10",  # a data set of cifar_jax.datasets.DATASETS, or a prepared one of TFDS by name
                "validation": 5000,  # images held out of train, the same share of each class
                "seed": 0,  # which ones are held out
                "mean": (0.4914, 0.4822, 0.4465),  # of each channel, pixels in 0..1; one number serves all channels
                "std": (0.2470, 0.2435, 0.2616),  # of each channel, likewise
                "num_classes": 0,  # this and the two below are filled in from the data set
                "image_shape": (),  # height, width, channels
                "train_count": 0,  # images trained on, validation held out
            },
            "model": {"name": "resnet18"},
            "optimizer": {
                "name": "sgd",
                "learning_rate": 0.1,  # the schedule's factor multiplies it
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 5e-4,
            },
            "schedule": {"name": "cosine"},  # all lengths in epochs
            "gradient_clip_norm": 0.0,  # largest global norm of the gradients; 0 does not clip
            "loss": {"name": "cross_entropy", "label_smoothing": 0.0},
            "augment": {  # strength 0 is off
                "flip": 0.0,  # probability of mirroring an image
                "crop": 0,  # largest shift, pixels
            },
            "average": {"decay": 0.0},  # of the moving average of weights, a step; 0 keeps none
            "early_stopping": {
                "patience": 0,  # epochs without improvement before the run ends; 0 never ends it
                "metric": "validation_accuracy",  # or validation_loss
            },
            "checkpoint": {"every_epochs": 1},
            "evaluation": {
                "batch_size": 1000,  # images; changes no result
                "views": "one",  # of cifar_jax.augment.VIEWS, averaged: one, mirror, mirror_shift
            },
        }
    )

"""The defaults of every recipe: a recipe file returns only what it sets otherwise, and no other fields exist.

The sections model, proxy, objective, optimizer, schedule and loss name a function of a table (`models.MODELS`, and
`OBJECTIVES`, `OPTIMIZERS`, `SCHEDULES`, `LOSSES` in modules of `training`); their other fields are its parameters.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,  # of everything random but the choice of the held-out images
            "seeds": {  # one kind of randomness on its own; -1 follows `seed`
                "weights": -1,  # initial weights
                "order": -1,  # of the images in each epoch
                "augmentation": -1,  # and dropout
            },
            "epochs": 30,  # passes over the training set
            "batch_size": 128,  # images a step, over all devices
            "gradient_accumulation": 1,  # parts that a batch is taken in, one after another, for less memory at a time
            # Of activations: float32, bfloat16, float16; on the CPU with JAX_ENABLE_X64=1 float64, of parameters too.
            "dtype": "auto",  # bfloat16, but float32 on the CPU
            # Starting weights: the workdir of another run, or a .safetensors file of a ResNet or VGG as torchvision and
            # timm name its tensors (see cifar_jax/runs/pretrained.py). A head of other classes is initialised anew.
            # `groups` may freeze the rest, or slow it; batch statistics are in no group and follow the new images.
            "init_from": "",  # "" draws all weights
            "chunk_epochs": 1,  # epochs that run as one program; the host logs and saves in between
            "part_steps": 0,  # steps of the parts of a long epoch, for progress and checkpoints; 0 decides by cost
            "data": {
                "name": "cifar10",  # a data set of cifar_jax.data.DATASETS, or a prepared one of TFDS by name
                "path": "",  # image_folder: a folder of images, or a CSV file (see cifar_jax/data/image_folder.py)
                "image_size": 32,  # image_folder: pixels a side that all images get
                "resize_mode": "stretch",  # image_folder: stretch, pad (on black) or crop (the centre)
                "test_share": 0.2,  # image_folder: of each class, where it has no test split
                "validation_share": 0.1,  # image_folder: likewise; it takes the place of data.validation
                "validation": 5000,  # images held out of train, the same share of each class
                "seed": 0,  # which ones are held out
                "mean": (0.4914, 0.4822, 0.4465),  # of each channel, pixels in 0..1; one number serves all channels
                "std": (0.2470, 0.2435, 0.2616),  # of each channel, likewise
                "input_size": 0,  # images are enlarged to so many pixels a side on the device (bilinear); 0 keeps them
            },
            "model": {"name": "resnet18"},
            "objective": {"name": "classification"},  # what is trained for: classification, distillation
            "selection": {
                "share": 0.0,  # of each batch that is trained on, the images with the highest loss; 0 takes all
                "every": 4,  # the proxy, whose losses these are, trains once every this many steps
                "groups": (),  # those of the proxy's parameters, as `groups`
            },
            "proxy": {"name": "speedrun94"},  # a smaller model, read where selection.share is not 0
            "optimizer": {
                "name": "sgd",
                "learning_rate": 0.1,  # the schedule's factor multiplies it
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 5e-4,
            },
            # Parts of the model with rates of their own: ("pattern", learning-rate factor, weight-decay factor). The
            # pattern is a regular expression for whole paths such as "head/kernel"; each must match exactly one. A
            # fourth entry is the group's epochs: its schedule ends there and it is frozen from then on.
            "groups": (),  # () is one group of everything; a learning-rate factor of 0 freezes
            "schedule": {"name": "cosine"},  # all lengths in epochs
            "gradient_clip_norm": 0.0,  # largest global norm of the gradients; 0 does not clip
            # class_weights="balanced" gives every class the same share of the loss; or one number per class.
            "loss": {"name": "cross_entropy", "label_smoothing": 0.0},
            "augment": {  # strength 0 is off; they run in this order, on images in 0..1
                "flip": 0.0,  # probability of mirroring an image
                "alternating_flip": 0,  # 1 mirrors half of the images in even epochs, the other half in odd ones
                "vertical_flip": 0.0,  # probability of turning an image upside down
                "crop": 0,  # largest shift, pixels
                "rotation": 0.0,  # largest angle, degrees
                "brightness": 0.0,  # s: factor in 1 - s..1 + s
                "contrast": 0.0,  # s: factor on the distance from the image's mean grey, in 1 - s..1 + s
                "saturation": 0.0,  # s: factor on the distance from each pixel's grey, in 1 - s..1 + s
                "randaugment": 0.0,  # magnitude of two operations an image, at most 10
                "trivial_augment": 0.0,  # share of the paper's ranges for one operation an image; 1 is the paper's
                "cutout": 0,  # side of the square filled with data.mean, pixels; it may overlap the border
                "inner_cutout": 0,  # the same, but the square lies in the image
                "random_erasing": 0.0,  # probability of noise in a rectangle of 0.02 to 0.4 of the image
                "mixup": 0.0,  # alpha: each image is blended with another by a share of Beta(alpha, alpha)
                "cutmix": 0.0,  # alpha: a rectangle of another image, its share of the area 1 - Beta(alpha, alpha)
            },
            "average": {  # of the weights, evaluated in their place; one of the two, or lookahead
                "decay": 0.0,  # of a moving average, a step; 0 keeps none
                "start_epoch": 0,  # the first of the epochs, from 1, whose final weights are averaged; 0 keeps none
            },
            "lookahead": {
                "steps": 0,  # between two moves of the slow weights, which are evaluated; 0 keeps none
                "pull": 0.5,  # share of the way to the fast weights that a move takes
                "power": 0.0,  # the slow weights keep (1 - pull) * (share of the run that is over) ** power
            },
            "sam": {"rho": 0.0},  # distance in weights at which the gradient is taken, two evaluations a step; 0 is off
            "early_stopping": {
                "patience": 0,  # epochs without improvement before the run ends; 0 never ends it
                "metric": "validation_accuracy",  # or validation_loss
            },
            "checkpoint": {
                "every_epochs": 0,  # epochs between two saves; 0: after an epoch, 2 s or more after the last save
                "every_minutes": 2.0,  # and inside a long epoch, at the end of a part: minutes since the last save
            },
            "evaluation": {
                "batch_size": 1000,  # images; changes no result
                "views": "one",  # of cifar_jax.training.augment.VIEWS, averaged: one, mirror, flips, mirror_shift
            },
        }
    )

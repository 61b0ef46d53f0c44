"""What is said to a caller who made a mistake: one sentence that quotes the value, says what is allowed, what to do."""

import difflib
from collections.abc import Iterable

# What other libraries and papers call the fields of our recipes.
OTHER_NAMES = {
    "arch": "model",
    "architecture": "model",
    "backbone": "model",
    "net": "model",
    "network": "model",
    "opt": "optimizer",
    "optim": "optimizer",
    "lr": "learning_rate",
    "base_lr": "learning_rate",
    "initial_lr": "learning_rate",
    "max_lr": "learning_rate",
    "wd": "weight_decay",
    "l2": "weight_decay",
    "b1": "beta1",
    "beta_1": "beta1",
    "b2": "beta2",
    "beta_2": "beta2",
    "eps": "epsilon",
    "lr_schedule": "schedule",
    "lr_scheduler": "schedule",
    "scheduler": "schedule",
    "warmup": "warmup_epochs",
    "criterion": "loss",
    "loss_fn": "loss",
    "objective_fn": "loss",
    "smoothing": "label_smoothing",
    "ls": "label_smoothing",
    "aug": "augment",
    "augmentations": "augment",
    "transforms": "augment",
    "hflip": "flip",
    "horizontal_flip": "flip",
    "bs": "batch_size",
    "batch": "batch_size",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "grad_accum": "gradient_accumulation",
    "accumulation_steps": "gradient_accumulation",
    "grad_clip": "gradient_clip_norm",
    "clip_norm": "gradient_clip_norm",
    "max_grad_norm": "gradient_clip_norm",
    "dataset": "data",
    "val_size": "validation",
    "random_seed": "seed",
    "precision": "dtype",
    "pretrained": "init_from",
    "ema": "average.decay",
    "ema_decay": "average.decay",
    "dropout_rate": "dropout",
    "drop_rate": "dropout",
    "drop_path_rate": "drop_path",
    "num_heads": "heads",
    "growth_rate": "growth",
    "widen_factor": "widen",
}


class InputError(ValueError):
    """A mistake of the caller's, told in one sentence: what was wrong, what is allowed, what to do."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: "; did you mean 'resnet18'? Known: a, b, c"."""
    names = sorted(known)
    meant = suggestion(word, names)
    return (f"; did you mean '{meant}'?" if meant else ".") + f" Known: {', '.join(names)}"


def suggestion(word: str, known: Iterable[str], elsewhere: Iterable[str] = ()) -> str | None:
    """The name that was meant, or None: the same field elsewhere, our name for it, or one of nearly the same letters.

    Names may be dotted; all of `known` are in the section of `word`, and `elsewhere` are those of other sections.
    """
    names, others = list(known), sorted(elsewhere, key=len)
    section, dot, last = word.rpartition(".")
    meant = OTHER_NAMES.get(last.lower(), last)
    exact = [name for name in names if name == section + dot + meant]
    exact += [name for name in others if name == meant or name.endswith(f".{meant}")]
    if exact:
        return exact[0]
    for candidates, likeness in ((names, 0.6), (others, 0.8)):
        by_last = {name.rpartition(".")[2]: name for name in reversed(candidates)}
        if close := difflib.get_close_matches(last, by_last, n=1, cutoff=likeness):
            return by_last[close[0]]
    return None


def with_article(noun: str) -> str:
    """ "an optimizer", "a model"."""
    return f"{'an' if noun[:1].lower() in tuple('aeiou') else 'a'} {noun}"

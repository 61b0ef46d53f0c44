"""Uses of a trained model. Each takes a `Classifier` (cifar_jax/runs/classifier.py): read that file first."""

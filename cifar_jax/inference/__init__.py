"""Uses of a trained model. Start reading at predict.py: images by name; similar.py searches by similarity."""

"""PyTorch's loop of trainings for benchmarks/studies.py: runs after each other in one process, each with an evaluation.

    python torch_runs.py SETTING.json    # {"folder", "setting", "epochs", "runs"}; prints the accuracies as JSON

The network, the step and the epoch are those of torch_peer.py in its faster form; it needs torch and numpy alone.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch_peer import Peer


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    folder, peer, accuracies = Path(asked["folder"]), Peer(), []
    peer.take("fast", asked["setting"])
    peer.images = torch.from_numpy(np.load(folder / "images.npy"))
    peer.labels = torch.from_numpy(np.load(folder / "labels.npy")).long()
    images, labels = np.load(folder / "validation_images.npy"), np.load(folder / "validation_labels.npy")
    for seed in range(asked["runs"]):
        torch.manual_seed(seed)
        peer.train(asked["epochs"])
        peer.model.eval()
        batches = [peer.logits(images[start : start + 1000]) for start in range(0, len(images), 1000)]
        accuracies.append(float((np.concatenate(batches).argmax(1) == labels).mean()))
    print(json.dumps(accuracies))


if __name__ == "__main__":
    main()

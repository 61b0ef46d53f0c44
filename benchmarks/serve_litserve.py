"""The same model behind LitServe, for `serve.py rate --peer`: batches of up to 32, its default of one worker.

    python benchmarks/serve_litserve.py --workdir=runs/cnn     # needs `pip install litserve`; prints its address

An image comes as base64 in JSON, as in LitServe's own examples: its requests cross to the worker as JSON values do.
"""

import argparse
import base64
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import litserve
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))


class Api(litserve.LitAPI):
    """Runs in the worker, a process of its own."""

    workdir: str

    def setup(self, device: Any) -> None:
        import cifar_jax as cj

        cj.prepare_process()
        self.classifier = cj.load_classifier(self.workdir)
        for power in range(6):
            self.classifier.probabilities(np.zeros((1 << power, 32, 32, 3), np.uint8))

    def decode_request(self, request) -> np.ndarray:  # type: ignore[no-untyped-def]  # LitServe reads the annotation
        from cifar_jax.data.decoding import decode

        return decode(base64.b64decode(request["image"]), 32, "stretch")

    def predict(self, x: np.ndarray) -> Any:
        from cifar_jax.inference.predict import ranked

        probabilities = self.classifier.probabilities(x)
        return ranked(probabilities, self.classifier.classes, 5)

    def encode_response(self, output: Any) -> Any:
        return {"class": output[0][0], "top": [{"class": name, "probability": value} for name, value in output]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    workdir = parser.parse_args().workdir
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    api = Api(max_batch_size=32, batch_timeout=0.002)
    api.workdir = workdir
    server = litserve.LitServer(api, accelerator="cpu", timeout=30)
    threading.Thread(target=tell, args=(port,), daemon=True).start()
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error", access_log=False)


def tell(port: int) -> None:
    """Prints the address when the worker is ready."""
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    print(url, flush=True)
                    return
        except OSError:
            pass
        time.sleep(0.2)


if __name__ == "__main__":
    main()

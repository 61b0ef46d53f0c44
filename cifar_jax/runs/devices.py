"""Where the program runs: compiler options, the mesh over local devices, and placement on it."""

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cifar_jax.errors import InputError

# jaxlib 0.10 sends the CPU's convolutions to YNNPACK, whose filter gradient takes 222 ms where XLA's own takes 59
# (250 images of 15x15, 64 -> 256 channels). Keep YNNPACK where it is the faster one: matrix products and reductions.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"}
# In 16 bits the same convolutions give NaN with jaxlib 0.12.0.1 while any of YNNPACK is on (resnet18 and convnet, not
# resnet20); 0.10.2 is right either way. A model that a GPU trained in bfloat16 is evaluated so on a CPU.
# oneDNN (xla_cpu_experimental_onednn_custom_call) stays off: with 0.12.0.1 and AMX it takes a step of cnn in bfloat16
# from 76 to 33 ms (float32: 61), but the kernel gradients of batches below 16 are wrong, without a word.
CPU_OPTIONS_OF_16_BITS = {"xla_cpu_experimental_ynn_fusion_type": ""}
KEPT = 4  # data sets that a placement keeps


@functools.cache
def compiler_options(dtype: str = "float32") -> dict[str, str]:
    """The options of a program that computes in `dtype`; none where this platform or jaxlib does not know them."""
    if jax.default_backend() != "cpu":
        return {}
    options = CPU_OPTIONS_OF_16_BITS if dtype in ("bfloat16", "float16") else CPU_OPTIONS
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except Exception as error:  # jaxlib's answer to an unknown option is of a different class in each version
        reason = (str(error).splitlines() or [""])[0]
        warnings.warn(f"this jaxlib does not take {options}; training may be slower ({reason})", stacklevel=2)
        return {}
    return options


def jit(function: Callable[..., Any], dtype: str = "float32", **arguments: Any) -> Any:
    """jax.jit with this platform's compiler options for programs that compute in `dtype`."""
    return jax.jit(function, compiler_options=compiler_options(dtype), **arguments)


def compute_dtype(dtype: str) -> str:
    """`recipe.dtype` with "auto" resolved: bfloat16 on accelerators, float32 on the CPU, where bfloat16 is slower.

    Raises InputError on an unknown dtype, and on float64 unless `jax_enable_x64` is on and the platform is the CPU.
    """
    if dtype == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in ("float64", "float32", "bfloat16", "float16"):
        raise InputError(f"dtype '{dtype}' is unknown; it is one of auto, float32, bfloat16, float16, float64")
    if dtype == "float64" and not jax.config.jax_enable_x64:
        raise InputError(
            "dtype 'float64' needs 64-bit values in JAX, which are off; set the environment variable JAX_ENABLE_X64=1,"
            " or choose float32"
        )
    if dtype == "float64" and jax.default_backend() != "cpu":
        raise InputError(
            f"dtype 'float64' runs on the CPU only, and this platform is '{jax.default_backend()}'; set the environment"
            " variable JAX_PLATFORMS=cpu, or choose float32"
        )
    return dtype


def constraint(batch: NamedSharding | None) -> tuple[Callable[[Any], Any], int]:
    """What places a batch on devices by its sharding, the identity without one; and the number of devices."""
    if batch is None:
        return lambda tree: tree, 1
    return lambda tree: jax.lax.with_sharding_constraint(tree, batch), batch.mesh.size


def device_memory(device: Any) -> int | None:
    """Bytes of the device, of the machine for the CPU; None where they are not known."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (device.memory_stats() or {}).get("bytes_limit")


class Placement:
    """Data parallelism over all local devices: arrays are replicated, and each batch is split over the mesh."""

    def __init__(self, devices: list[Any] | None = None) -> None:
        self.devices = devices or jax.local_devices()
        mesh = Mesh(np.array(self.devices), ("data",))
        self.replicated = NamedSharding(mesh, PartitionSpec())
        # With one device there is nothing to constrain, and the program stays free of annotations.
        self.batch = NamedSharding(mesh, PartitionSpec("data")) if len(self.devices) > 1 else None
        self._kept: dict[Any, Any] = {}

    def put(self, tree: Any) -> Any:
        """The tree's arrays, replicated on every device."""
        return jax.device_put(tree, self.replicated)

    def put_once(self, key: Any, make: Callable[[], Any]) -> Any:
        """`put(make())`, kept for the next calls with this key: the data set that runs after each other train on."""
        if key not in self._kept:
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[key] = self.put(make())
        return self._kept[key]

    def memory(self) -> int | None:
        """Bytes of one of its devices; None where they are not known."""
        return device_memory(self.devices[0])

    def check(self, field: str, size: int) -> None:
        """Raises InputError unless a batch of `size` splits evenly."""
        if size % len(self.devices):
            raise InputError(f"{field}={size} does not split over {len(self.devices)} devices; make it a multiple")

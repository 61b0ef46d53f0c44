"""What a run trusts its checkpoints with: nothing is lost, nothing damaged comes back."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_jax.errors import InputError
from cifar_jax.runs.checkpoint import Checkpoints, read_json, write_json


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any
    average: dict[str, Any]


def state_at(step: int) -> State:
    """A function of its step: every dtype, 0-d leaves, an empty dict, NamedTuples, EmptyState."""
    keys = jax.random.split(jax.random.key(step), 3)
    params = {
        "Dense_0": {
            "kernel": jax.random.normal(keys[0], (16, 8)),
            "bias": jax.random.normal(keys[1], (8,), jnp.bfloat16),
        },
        "seed/0": jax.random.bits(keys[2], (4,), jnp.uint32),
    }
    optimizer = optax.chain(optax.clip(1.0), optax.adam(0.1), optax.ema(0.9))
    return State(jnp.int32(step), params, {}, optimizer.init(params), {"scale": jnp.float32(step)})


def assert_same(actual: Any, expected: Any) -> None:
    """Equal structure, dtypes, shapes and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)  # type: ignore[operator]
    for got, want in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert isinstance(got, jax.Array)
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        assert np.asarray(got).tobytes() == np.asarray(want).tobytes()


LIKE = jax.eval_shape(lambda: state_at(0))


def save_all(run: Path, steps: list[int], accuracy: dict[int, float] | None = None, keep: int = 2) -> None:
    with Checkpoints(run / "checkpoints", keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_at(step), (accuracy or {}).get(step, 0.5))


def folders(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with steps 1 and 2, to be copied before it is damaged."""
    run = tmp_path_factory.mktemp("saved")
    save_all(run, [1, 2])
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "run")


# --- saving and restoring


def test_round_trip(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore(LIKE) is None
        assert checkpoints.steps() == []
        checkpoints.save(7, state_at(7), None)
        restored = checkpoints.restore(LIKE)  # finishes the save first
        assert restored is not None
        assert restored[1] == 7
        assert_same(restored[0], state_at(7))
        assert checkpoints.restore(LIKE, "best") is None  # no score was given
        assert checkpoints.steps() == [7]
        with pytest.raises(InputError, match="'newest' is unknown; known: last, best"):
            checkpoints.restore(LIKE, "newest")
    assert capfd.readouterr() == ("", "")


def test_numpy_scalars_become_arrays(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, {"scalar": np.float32(2.5)}, None)
        restored = checkpoints.restore({"scalar": jax.ShapeDtypeStruct((), jnp.float32)})
    assert restored is not None
    assert restored[0]["scalar"] == 2.5


def test_leaves_go_where_like_says(run: Path) -> None:
    mesh = jax.make_mesh((1,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), LIKE)
    restored = Checkpoints(run / "checkpoints").restore(like)
    assert restored is not None
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(restored[0]))
    assert_same(restored[0], state_at(2))


def test_donated_arrays_are_saved_as_they_were(tmp_path: Path) -> None:
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    tree = {f"layer_{i}": jnp.full((256, 1024), i, jnp.float32) for i in range(8)}
    expected = jax.tree.map(lambda leaf: np.array(leaf), tree)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, tree, None)
        address = tree["layer_0"].unsafe_buffer_pointer()
        tree = overwrite(tree)
        assert tree["layer_0"].unsafe_buffer_pointer() == address  # in place: the donation was real, no view is held
        for _ in range(20):
            tree = overwrite(tree)
        restored = checkpoints.restore(jax.eval_shape(lambda: tree))
    assert restored is not None
    assert_same(restored[0], expected)


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    accuracy = {10: 0.1, 20: 0.9, 30: 0.2, 40: 0.9, 50: 0.3, 60: 0.4}  # a tie: the earliest, 20
    save_all(tmp_path, [10, 20, 30, 40, 50, 60], accuracy)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps() == folders(tmp_path) == [20, 50, 60]
    for which, step in (("last", 60), ("best", 20)):
        restored = checkpoints.restore(LIKE, which)
        assert restored is not None
        assert restored[1] == step
        assert_same(restored[0], state_at(step))


def test_best_survives_a_restart(tmp_path: Path) -> None:
    accuracy = {10: 0.1, 20: 0.9, 30: 0.2, 40: 0.5, 50: 0.3, 60: 0.95}
    for step, kept in ((10, [10]), (20, [10, 20]), (30, [20, 30]), (40, [20, 30, 40]), (50, [20, 40, 50])):
        save_all(tmp_path, [step], accuracy)  # every save in a Checkpoints of its own
        assert Checkpoints(tmp_path / "checkpoints").steps() == folders(tmp_path) == kept
    save_all(tmp_path, [60], accuracy)
    assert folders(tmp_path) == [50, 60]
    assert sorted(path.name for path in (tmp_path / "manifests").iterdir()) == ["50.json", "60.json"]


def test_an_existing_step_is_overwritten(run: Path) -> None:
    (run / "manifests" / "1.json").unlink()  # as a kill leaves it
    (run / "checkpoints" / "3").mkdir()
    with Checkpoints(run / "checkpoints", keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state_at(step + 100), None)
    assert checkpoints.steps() == folders(run) == [1, 2, 3]
    restored = checkpoints.restore(LIKE)
    assert restored is not None
    assert restored[1] == 3
    assert_same(restored[0], state_at(103))


def test_structure_that_does_not_fit_is_not_damage(run: Path) -> None:
    checkpoints = Checkpoints(run / "checkpoints")
    other_shape = LIKE.replace(average={"scale": jax.ShapeDtypeStruct((2,), jnp.float32)})
    other_dtype = LIKE.replace(average={"scale": jax.ShapeDtypeStruct((), jnp.bfloat16)})
    other_name = LIKE.replace(average={"shift": jax.ShapeDtypeStruct((), jnp.float32)})
    for like, sentence in (
        (other_shape, ".average['scale'] is float32[], expected float32[2]"),
        (other_dtype, ".average['scale'] is float32[], expected bfloat16[]"),
        (other_name, ".average['scale'] is not expected; .average['shift'] is missing"),
    ):
        with pytest.raises(InputError, match=re.escape(sentence)):
            checkpoints.restore(like)
    assert folders(run) == [1, 2]
    assert not (run / "quarantine").exists()


# --- damage


def assert_falls_back(run: Path, reason: str) -> None:
    """Step 2 is refused with one warning and quarantined; step 1 is restored; a second look is silent."""
    checkpoints = Checkpoints(run / "checkpoints")
    with pytest.warns(UserWarning, match=reason) as caught:
        restored = checkpoints.restore(LIKE)
    assert [str(warning.message).startswith("checkpoint 2 in ") for warning in caught] == [True]
    assert restored is not None
    assert restored[1] == 1
    assert_same(restored[0], state_at(1))
    assert checkpoints.steps() == folders(run) == [1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = checkpoints.restore(LIKE, "best")
    assert again is not None
    assert again[1] == 1


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(path.name).randrange(len(content))] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(flip_a_bit, "is altered"), (truncate, "is altered"), (Path.unlink, "is missing")],
    ids=["flip", "truncate", "delete"],
)
def test_damage_to_any_file(saved: Path, tmp_path: Path, damage: Any, reason: str) -> None:
    names = [path.relative_to(saved) for path in (saved / "checkpoints" / "2").rglob("*") if path.is_file()]
    names = [name for name in names if (saved / name).stat().st_size or damage is Path.unlink]
    assert len(names) >= 7
    for name in names:
        run = shutil.copytree(saved, tmp_path / "run")
        damage(run / name)
        assert_falls_back(run, reason)
        assert (run / "quarantine" / "2.json").exists()
        shutil.rmtree(run)


def test_added_file(run: Path) -> None:
    (run / "checkpoints" / "2" / "state" / "extra").write_text("")
    assert_falls_back(run, "state/extra is not in its manifest")


def test_empty_folder(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "2")
    (run / "checkpoints" / "2").mkdir()
    assert_falls_back(run, "its folder is empty or missing")


def test_empty_newer_folder_without_manifest(run: Path) -> None:
    (run / "checkpoints" / "3").mkdir()
    with pytest.warns(UserWarning, match="checkpoint 3 .* has no manifest"):
        restored = Checkpoints(run / "checkpoints").restore(LIKE)
    assert restored is not None
    assert restored[1] == 2


def test_missing_folder(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "2")
    assert_falls_back(run, "its folder is empty or missing")


def test_missing_manifest(run: Path) -> None:
    (run / "manifests" / "2.json").unlink()
    assert_falls_back(run, "it has no manifest")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[1, 2]", b'{"files": 3}', b'{"files": {}}'])
def test_garbage_manifest(run: Path, content: bytes) -> None:
    (run / "manifests" / "2.json").write_bytes(content)
    assert_falls_back(run, "its manifest is damaged|is not in its manifest")


def test_a_second_quarantine_of_a_step_keeps_the_first(run: Path) -> None:
    for _ in range(2):
        (run / "checkpoints" / "3").mkdir()
        with pytest.warns(UserWarning, match="checkpoint 3"):
            Checkpoints(run / "checkpoints").restore(LIKE)
    assert sorted(path.name for path in (run / "quarantine").iterdir()) == ["3", "3-2"]


def test_damaged_best_falls_back_to_the_next_best(tmp_path: Path) -> None:
    save_all(tmp_path, [1, 2, 3], {1: 0.9, 2: 0.7, 3: 0.8})
    truncate(tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA")
    with pytest.warns(UserWarning, match="checkpoint 1 "):
        restored = Checkpoints(tmp_path / "checkpoints").restore(LIKE, "best")
    assert restored is not None
    assert restored[1] == 3


def test_all_damaged(run: Path) -> None:
    for step in (1, 2):
        truncate(run / "checkpoints" / str(step) / "_CHECKPOINT_METADATA")
    with pytest.warns(UserWarning, match="_CHECKPOINT_METADATA is altered") as caught:
        assert Checkpoints(run / "checkpoints").restore(LIKE) is None
    assert len(caught) == 2
    assert folders(run) == []


# --- failure

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import jax.numpy as jnp
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.errors import InputError
run, small, large = Path(sys.argv[1]), {"x": jnp.ones(3)}, {"x": jnp.arange(1e6)}
checkpoints = Checkpoints(run / "checkpoints")
checkpoints.save(1, large, None)
checkpoints.finish()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))  # long files fail
checkpoints.save(2, large, None)
try:
    checkpoints.save(3, small, None)
    print("not reported")
except InputError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpoints.save(4, large, None)  # there is room again
checkpoints.finish()
print(checkpoints.steps(), sorted(path.name for path in (run / "checkpoints").iterdir()))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
checkpoints.save(5, large, None)  # never looked at: the exit must not hang
"""


NO_ROOM = """
import os, sys
from pathlib import Path
import jax.numpy as jnp
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.errors import InputError
make_directory = os.mkdir
def mkdir(path, *arguments, **options):
    if "tmp" in Path(path).name:
        raise OSError(28, "No space left on device", str(path))
    make_directory(path, *arguments, **options)
os.mkdir = mkdir
try:
    Checkpoints(Path(sys.argv[1]) / "checkpoints").save(1, {"x": jnp.ones(3)}, None)
except InputError as error:
    print(error)
"""


def python(source: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", source, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_failed_save_is_reported_at_the_next_call(tmp_path: Path) -> None:
    process = python(FULL_DISK, str(tmp_path))
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    told, after = output.splitlines()
    assert told.startswith(f"checkpoint 2 could not be saved in {tmp_path / 'checkpoints'}; is the disk full")
    assert after == "[1, 4] ['1', '4']"
    assert "ERROR:absl" not in errors


def test_no_room_for_a_folder_does_not_hang_the_exit(tmp_path: Path) -> None:
    output, errors = python(NO_ROOM, str(tmp_path)).communicate(timeout=30)
    assert re.search("checkpoint 1 could not be saved in .* No space left on device", output), errors


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file in the way")
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(InputError, match=f"checkpoint 1 could not be saved in {tmp_path / 'checkpoints'}"):
        checkpoints.save(1, state_at(1), None)
    checkpoints.close()


def test_manifest_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, state_at(1), None)
        checkpoints.finish()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            checkpoints.save(2, state_at(2), None)
            with pytest.raises(InputError, match=r"checkpoint 2 .* No space left on device"):
                checkpoints.finish()
        checkpoints.finish()  # told once
        with pytest.warns(UserWarning, match="checkpoint 2 .* no manifest"):
            restored = checkpoints.restore(LIKE)
    assert restored is not None
    assert restored[1] == 1


def test_a_score_must_be_finite(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the score of step 1 is nan; it must be finite"):
        Checkpoints(tmp_path / "checkpoints").save(1, state_at(1), float("nan"))


def test_best_may_be_negative(tmp_path: Path) -> None:
    """Early stopping by loss scores -loss."""
    save_all(tmp_path, [1, 2, 3, 4], {1: -3.0, 2: -0.5, 3: -1.0, 4: -2.0})
    restored = Checkpoints(tmp_path / "checkpoints").restore(LIKE, "best")
    assert restored is not None
    assert restored[1] == 2


def test_a_reader_moves_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Not what is damaged, which it tells, and not what a live run may be saving, which it passes over."""
    save_all(tmp_path, [1, 2, 3])
    shutil.copytree(tmp_path / "checkpoints" / "3", tmp_path / "checkpoints" / "4")  # committed, not yet in a manifest
    shutil.rmtree(tmp_path / "checkpoints" / "3")
    before = sorted(tmp_path.rglob("*"))
    restored = Checkpoints(tmp_path / "checkpoints", reader=True).restore(LIKE)
    assert restored is not None
    assert restored[1] == 2
    assert sorted(tmp_path.rglob("*")) == before
    assert [str(warning.message).split(" in ")[0] for warning in recwarn] == ["checkpoint 3"]


SAVE_LOOP = """
import sys
from pathlib import Path
import jax, numpy as np
from cifar_jax.runs.checkpoint import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]) / "checkpoints")
leaf = jax.ShapeDtypeStruct
restored = checkpoints.restore({"step": leaf((), "int32"), "x": leaf((99, 999), "float32")})
step = restored[1] if restored else 0
while True:
    step += 1
    state = {"step": np.array(step, np.int32), "x": np.full((99, 999), step, np.float32)}
    checkpoints.save(step, state, step % 7 / 7)
    print("saving", flush=True)
"""


def test_kill_at_any_moment(tmp_path: Path) -> None:
    """A save takes about 30 ms here, so a kill falls anywhere in one; each process resumes from what is left."""
    moments = random.Random(0)
    like = {"step": jax.ShapeDtypeStruct((), jnp.int32), "x": jax.ShapeDtypeStruct((99, 999), jnp.float32)}
    last = 0
    for _ in range(6):
        process = python(SAVE_LOOP, str(tmp_path))
        assert process.stdout is not None
        for _ in range(3):  # the third save begins once the second is complete
            assert process.stdout.readline() == "saving\n", process.communicate()[1]
        time.sleep(moments.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a kill between the commit and its manifest is told, rightly
            for which in ("last", "best"):
                restored = checkpoints.restore(like, which)
                assert restored is not None
                state, step = restored
                assert state["step"] == step
                assert (state["x"] == step).all()
        newest = checkpoints.steps()[-1]
        assert newest > last
        last = newest


# --- JSON


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "value.json"
    write_json(path, {"accuracy": 0.1})
    assert read_json(path) == {"accuracy": 0.1}
    for value in ({"loss": float("nan")}, {"x": object()}):
        with pytest.raises(InputError, match=r"value.json could not be written"):
            write_json(path, value)
    assert json.loads(path.read_text()) == {"accuracy": 0.1}
    assert os.listdir(path.parent) == ["value.json"]
    path.write_text('{"accuracy": ')
    with pytest.raises(InputError, match=r"value.json is damaged"):
        read_json(path)
    with pytest.raises(InputError, match=r"gone.json cannot be read: No such file"):
        read_json(tmp_path / "gone.json")
    with pytest.raises(InputError, match="could not be written"):
        write_json(path / "below.json", 1)

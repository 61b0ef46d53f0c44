"""A run's host memory does not grow with its epochs."""

import jax
import numpy as np
import pytest

import cifar_jax as cj
from cifar_jax.runs import loop
from tests import made

EPOCHS = 12


@pytest.mark.parametrize("kept", [True, False], ids=["workdir", "no workdir"])
def test_no_array_of_an_epoch_outlives_it(monkeypatch, tmp_path, kept):
    """The arrays that are alive after each epoch: one state kept in each would show as so many states at the end.

    Counted, not measured: an allocator's habits and other threads make a process's size jump.
    """
    alive = []
    lines = loop.lines_of

    def count(*arguments):  # called once an epoch, with a checkpoint under way
        alive.append(sum(array.nbytes for array in jax.live_arrays()))
        return lines(*arguments)

    monkeypatch.setattr(loop, "lines_of", count)
    recipe = made.recipe(epochs=EPOCHS)
    trained = cj.fit(
        recipe,
        tmp_path / "run" if kept else None,
        data={"train": made.split(), "test": made.split(16, seed=1)},
        progress=False,
    )
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(trained.state))
    assert len(alive) == EPOCHS
    early, late = max(alive[: EPOCHS // 2]), max(alive[EPOCHS // 2 :])
    assert late <= early + 2 * state  # two saves may be under way at the end, and one before
    assert state > 1000
    assert np.all(np.array(alive) > 0)

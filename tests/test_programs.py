"""The compiled programs of every recipe are those that were recorded: a change that means to alter none alters none."""

import json

import pytest

from tests.programs import RECORDED, digests
from tests.test_recipes import RECIPES


@pytest.mark.skipif(not RECORDED.exists(), reason=f"no programs are recorded for this version of jax: {RECORDED.name}")
@pytest.mark.parametrize("name", RECIPES)
def test_the_programs_are_the_recorded_ones(name):
    """Where a change is meant, explain it in the commit and record anew: python -m tests.programs."""
    assert digests(name) == json.loads(RECORDED.read_text())[name]

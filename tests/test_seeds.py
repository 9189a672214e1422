"""Tests and fixtures draw the same random numbers, whatever ran before them."""

import importlib.util
import random

import numpy as np
import pytest


def draw():
    """Return numbers of all global generators."""
    numbers = [random.random(), np.random.random()]  # noqa: NPY002
    if importlib.util.find_spec("torch"):
        import torch

        numbers.append(torch.rand(()).item())
    return numbers


@pytest.fixture(scope="module")
def drawn():
    return draw()


@pytest.mark.parametrize("turn", range(2))
def test_each_test_and_each_fixture_starts_from_the_same_seed(turn, drawn):
    assert draw() == drawn
    assert draw() != drawn

"""The grid of fine-tuning on other data, and the choice from it."""

import math

import numpy as np
import pytest

from jaxcl.probe import TRANSFER, TRANSFER_SCRATCH, Choice, Grid, search


def test_the_grids_are_the_papers():
    half = math.sqrt(10)
    np.testing.assert_allclose(TRANSFER.rates, [1e-4 * half**i for i in range(7)])
    np.testing.assert_allclose(TRANSFER.decays, [0, *(1e-6 * half**i for i in range(7))])
    assert len(TRANSFER) == 56
    np.testing.assert_allclose(TRANSFER_SCRATCH.rates, [1e-3 * half**i for i in range(7)])
    np.testing.assert_allclose(TRANSFER_SCRATCH.decays, [1e-5 * half**i for i in range(8)])


def test_the_best_pair_is_chosen():
    scores = {(0.1, 0.0): 0.3, (0.1, 1e-3): 0.5, (1.0, 0.0): 0.7, (1.0, 1e-3): 0.6}
    tried, said = [], []

    def score(rate, decay):
        tried.append((rate, decay))
        return scores[rate, decay]

    assert search(Grid((1.0, 0.1), (1e-3, 0.0)), score, said.append) == Choice(1.0, 0.0, 0.7)
    assert sorted(tried) == sorted(scores)
    assert len(said) == 4
    assert said[1] == (
        "  [2/4] learning rate 0.1, weight decay 0.001 / rate: 50.0% of the validation images"
    )


def test_of_equals_the_smaller_rate_then_the_smaller_decay():
    grid = Grid((0.3, 0.1), (1e-3, 1e-4))
    assert search(grid, lambda rate, decay: 0.5, print) == Choice(0.1, 1e-4, 0.5)


def test_pairs_that_diverge_are_left_out():
    def diverging(rate, decay):
        if rate > limit:
            raise FloatingPointError
        return rate

    said, limit = [], 0.5
    grid = Grid((0.1, 0.4, 0.9), (0.0, 1e-3))
    assert search(grid, diverging, said.append) == Choice(0.4, 0.0, 0.4)
    assert sum("diverges" in line for line in said) == 2
    limit = 0.0
    assert search(grid, diverging, said.append) is None


@pytest.mark.parametrize(
    ("rates", "decays", "text"),
    [
        ((), (0.0,), "rates"),
        ((0.0,), (0.0,), "rates"),
        ((1.0,), (), "decays"),
        ((1.0,), (-1.0,), "decays"),
    ],
)
def test_errors(rates, decays, text):
    with pytest.raises(ValueError, match=text):
        Grid(rates, decays)

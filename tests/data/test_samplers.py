import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcl.data import Uniform
from jaxcl.data.philox import uniform_order, uniforms


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_an_epoch_has_each_example_once_at_most(data):
    n = data.draw(st.integers(1, 60))
    sampler = Uniform(n, data.draw(st.integers(1, n)), data.draw(st.integers(0, 2**40)))
    epoch = data.draw(st.integers(0, 5))
    first = epoch * sampler.steps_per_epoch
    seen = np.concatenate([sampler.indices(first + i) for i in range(sampler.steps_per_epoch)])
    assert len(set(seen.tolist())) == len(seen) == n - sampler.left_out
    assert set(seen.tolist()) <= set(range(n))
    assert sampler.left_out == n % sampler.batch_size


def test_the_position_depends_on_seed_and_step_only():
    steps = [7, 0, 123_456_789, 7]
    one = [Uniform(100, 32, 5).indices(step) for step in steps]
    two = [Uniform(100, 32, 5).indices(step) for step in reversed(steps)]
    for a, b in zip(one, reversed(two), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one[0], Uniform(100, 32, 6).indices(7))
    assert not np.array_equal(one[0], one[1])


def test_what_is_left_out_differs_from_epoch_to_epoch():
    sampler = Uniform(10, 4, 0)
    assert (sampler.steps_per_epoch, sampler.left_out) == (2, 2)
    missed = [
        frozenset(range(10))
        - set(np.concatenate([sampler.indices(2 * e), sampler.indices(2 * e + 1)]).tolist())
        for e in range(30)
    ]
    assert len(set(missed)) > 10
    assert frozenset.union(*missed) == frozenset(range(10))


def test_a_caller_cannot_change_the_order():
    sampler = Uniform(10, 5, 0)
    first = sampler.indices(0)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(sampler.indices(0), kept)


def test_arguments_are_checked():
    assert len(Uniform(4, 4).indices(3)) == 4
    with pytest.raises(ValueError, match="batch of 5 is larger than the data, which has 4"):
        Uniform(4, 5)
    with pytest.raises(ValueError, match="batch_size=0"):
        Uniform(4, 0)
    with pytest.raises(ValueError, match="seed=-1"):
        Uniform(4, 2, -1)


def philox(counter, key):
    """One block of Philox-4x64-10 (Salmon et al. 2011, section 3.3) in Python's own integers."""
    word = 2**64 - 1
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(b >> 64) ^ c[1] ^ k[0], b & word, (a >> 64) ^ c[3] ^ k[1], a & word]
        k = [(k[0] + 0x9E3779B97F4A7C15) & word, (k[1] + 0xBB67AE8584CAA73B) & word]
    return c


def test_the_numbers_are_philox_and_stay_so():
    """A resumed run sees the same data with other versions of NumPy and on other machines."""
    words = philox([1, 0, 0, 0], [1, 2]) + philox([2, 0, 0, 0], [1, 2])
    np.testing.assert_array_equal(uniform_order(8, 1, 2), np.argsort(words))
    np.testing.assert_array_equal(uniform_order(8, 1, 2), [4, 2, 0, 6, 1, 5, 7, 3])
    words = philox([1, 4, 3, 2], [1, 2**64 - 1])
    np.testing.assert_array_equal(uniforms(4, 1, 2, 3, 4), [(w >> 11) / 2**53 for w in words])


def test_orders_are_uniform():
    """Each example comes to each place equally often: chi-square over 25 cells."""
    counts = np.zeros((5, 5))
    for stream in range(2000):
        counts[np.arange(5), uniform_order(5, 9, stream)] += 1
    assert ((counts - 400) ** 2 / 400).sum() < 16 + 5 * np.sqrt(32)


def test_uniforms_are_uniform_and_streams_apart():
    values = np.stack(
        [
            uniforms(9, 0, step, row, view)
            for step in range(9)
            for row in range(9)
            for view in (0, 1)
        ]
    )
    assert len(np.unique(values)) == values.size
    assert (values >= 0).all()
    assert (values < 1).all()
    assert abs(values.mean() - 0.5) < 4 * np.sqrt(1 / 12 / values.size)
    assert np.abs(np.corrcoef(values.T) - np.eye(9)).max() < 4.5 / np.sqrt(len(values))

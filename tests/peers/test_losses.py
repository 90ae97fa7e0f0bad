"""Equal losses have equal values and gradients here and in lightly and pytorch-metric-learning."""

import functools

import jax
import numpy as np
import pytest
import torch
from lightly.loss import NTXentLoss as LightlyNTXent
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

from jaxcl import losses

pytestmark = pytest.mark.filterwarnings("ignore")


def random_z(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def theirs(loss, z):
    """Value and gradient of a torch loss."""
    leaf = torch.tensor(z, requires_grad=True)
    value = loss(leaf)
    value.backward()
    return value.item(), leaf.grad.numpy()


def agree(ours, peer, z):
    value, gradient = jax.jit(jax.value_and_grad(ours))(z)
    expected, wanted = theirs(peer, z)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    assert np.linalg.norm(gradient - wanted) <= 1e-5 * np.linalg.norm(wanted)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_nt_xent(temperature, impl):
    z = random_z(0, 24, 2, 16)
    image = torch.arange(24).repeat_interleave(2)
    ours = functools.partial(losses.nt_xent, temperature=temperature, impl=impl)
    lightly = LightlyNTXent(temperature=temperature)
    metric_learning = NTXentLoss(temperature=temperature)
    agree(ours, lambda z: lightly(z[:, 0], z[:, 1]), z)
    # Its positives compete with negatives only, which for two views is the same.
    agree(ours, lambda z: metric_learning(z.reshape(48, 16), image), z)


def test_sup_con():
    z = random_z(1, 24, 2, 16)
    labels = np.random.default_rng(2).integers(0, 5, 24)
    ours = functools.partial(losses.sup_con, labels=labels, temperature=0.1)
    row_labels = torch.tensor(labels).repeat_interleave(2)
    metric_learning = SupConLoss(temperature=0.1)
    agree(ours, lambda z: metric_learning(z.reshape(48, 16), row_labels), z)


def test_info_nce_with_a_queue():
    q, k = random_z(3, 8, 16), random_z(4, 8, 16)
    lightly = LightlyNTXent(temperature=0.2, memory_bank_size=(32, 16), gather_distributed=False)
    queue = lightly.memory_bank.bank.clone().numpy()
    queue = queue if queue.shape == (32, 16) else queue.T
    ours = functools.partial(losses.info_nce, k=k, queue=queue, temperature=0.2)
    # No gradient: with one on the queries, lightly would put the keys into its bank.
    with torch.no_grad():
        expected = lightly(torch.tensor(q), torch.tensor(k)).item()
    np.testing.assert_allclose(jax.jit(ours)(q), expected, rtol=2e-6)

"""Losses and mining of metric learning have equal values and gradients here and in pytorch-metric-learning."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from pytorch_metric_learning import distances, miners, reducers
from pytorch_metric_learning import losses as peer

from jaxcl import losses
from jaxcl.bench import metric

pytestmark = pytest.mark.filterwarnings("ignore")

Z = np.random.default_rng(0).normal(size=(24, 8)).astype(np.float32)
# Classes of different sizes, and one of a single row.
LABELS = np.random.default_rng(1).integers(0, 6, 24)
LABELS[-1] = 6
PROXIES = np.random.default_rng(2).normal(size=(7, 8)).astype(np.float32)


def theirs(loss, miner, parameters=None):
    """Value, gradient of the rows and, if it has some, of its own parameters."""
    z = torch.tensor(Z, requires_grad=True)
    labels = torch.tensor(LABELS)
    mined = None if miner is None else miner(z, labels)
    value = loss(z, labels, mined)
    value.backward()
    own = None if parameters is None else parameters(loss).grad.numpy()
    return value.item(), z.grad.numpy(), own


def agree(ours, expected, tolerance=1e-5):
    """`ours` takes the rows, and proxies where the peer has some."""
    value, wanted, wanted_own = expected
    arguments = (jnp.asarray(Z),) + (() if wanted_own is None else (jnp.asarray(PROXIES),))
    run = jax.jit(jax.value_and_grad(ours, argnums=tuple(range(len(arguments)))))
    got, gradients = run(*arguments)
    np.testing.assert_allclose(got, value, rtol=5e-6)
    for gradient, target in zip(gradients, (wanted, wanted_own), strict=False):
        assert np.linalg.norm(gradient - target) <= tolerance * np.linalg.norm(target)


CASES = {
    "contrastive, margins": (
        functools.partial(losses.margin_contrastive, pos_margin=0.3, neg_margin=1.4),
        peer.ContrastiveLoss(0.3, 1.4),
        None,
    ),
    "contrastive, squared": (
        functools.partial(losses.margin_contrastive, neg_margin=2.0, distance="squared_l2"),
        peer.ContrastiveLoss(0, 2, distance=distances.LpDistance(power=2)),
        None,
    ),
    "contrastive, pair margins": (
        functools.partial(losses.margin_contrastive, mining="pair_margin"),
        peer.ContrastiveLoss(),
        miners.PairMarginMiner(),
    ),
    "contrastive, other pair margins": (
        functools.partial(
            losses.margin_contrastive, pos_margin=1.1, neg_margin=1.4, mining="pair_margin", mining_margins=(1.0, 1.2),
            reduction="mean",
        ),
        peer.ContrastiveLoss(1.1, 1.4, reducer=reducers.MeanReducer()),
        miners.PairMarginMiner(1.0, 1.2),
    ),
    "contrastive, SNR": (
        functools.partial(losses.margin_contrastive, pos_margin=0.5, neg_margin=2.5, distance="snr"),
        peer.ContrastiveLoss(0.5, 2.5, distance=distances.SNRDistance()),
        None,
    ),
    "triplet, SNR": (
        functools.partial(losses.triplet, distance="snr"),
        peer.TripletMarginLoss(0.2, distance=distances.SNRDistance()),
        None,
    ),
    "triplet, L3": (
        # The peer would normalise by the norm of the same p.
        functools.partial(losses.triplet, distance=losses.distance("lp", 3.0), normalized=False),
        peer.TripletMarginLoss(0.2, distance=distances.LpDistance(p=3, normalize_embeddings=False)),
        None,
    ),
    "triplet": (functools.partial(losses.triplet, margin=0.05), peer.TripletMarginLoss(), None),
    "triplet, swap": (
        functools.partial(losses.triplet, swap=True),
        peer.TripletMarginLoss(0.2, swap=True),
        None,
    ),
    "triplet, smooth": (
        functools.partial(losses.triplet, smooth=True),
        peer.TripletMarginLoss(0.2, smooth_loss=True),
        None,
    ),
    "triplet, cosine": (
        functools.partial(losses.triplet, distance="cosine"),
        peer.TripletMarginLoss(0.2, distance=distances.CosineSimilarity()),
        None,
    ),
    **{
        f"triplet, {kind}": (
            functools.partial(losses.triplet, mining=kind, smooth=True),
            peer.TripletMarginLoss(0.2, smooth_loss=True),
            miners.TripletMarginMiner(0.2, type_of_triplets=kind),
        )
        for kind in ("hard", "semihard", "easy")
    },
    "triplet, easy positive": (
        functools.partial(losses.triplet, mining="easy_positive"),
        peer.TripletMarginLoss(0.2),
        miners.BatchEasyHardMiner("easy", "semihard"),
    ),
    "margin, semi-hard": (
        functools.partial(losses.margin_loss, mining="semihard"),
        peer.MarginLoss(),
        miners.TripletMarginMiner(0.2, type_of_triplets="semihard"),
    ),
    "NCA": (functools.partial(losses.nca, scale=2.0), peer.NCALoss(2), None),
    "NT-Xent": (
        functools.partial(losses.nt_xent_pairs, temperature=0.2),
        peer.NTXentLoss(0.2),
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_losses_of_rows(name):
    ours, loss, miner = CASES[name]
    agree(lambda z: ours(z, LABELS), theirs(loss, miner), 3e-5)


@pytest.mark.parametrize("name", [name for name in metric.OURS if name not in metric.NO_PEER])
def test_every_line_of_the_bench_is_the_same_function(name):
    """With the settings that are measured, and with parameters of the peer's that are ours."""
    loss, miner = metric.peer_parts(name, len(PROXIES), Z.shape[1])
    parameters = None
    if name in metric.WITH_PROXIES:
        own, turned = ("W", True) if name == "ArcFace" else ("proxies", False)
        given = torch.nn.Parameter(torch.tensor(PROXIES.T.copy() if turned else PROXIES))
        setattr(loss, own, given)

        def parameters(loss):
            return types.SimpleNamespace(grad=given.grad.T if turned else given.grad)

    agree(lambda z, *p: metric.OURS[name](z, LABELS, *p), theirs(loss, miner, parameters), 3e-5)


def test_the_bench_runs_what_is_compared():
    """The value of a run's first step is that of the compared function, of the bench's own rows."""
    for name in ("contrastive", "N-pairs"):
        z, labels = (torch.tensor(x) for x in metric.batch(16, 8))
        expected = metric.peer_loss(name, 4, 8)(z, labels.long()).item()
        value, _ = metric.our_run(name, 16, 8)()
        np.testing.assert_allclose(value, expected, rtol=5e-6)


def test_memory_of_earlier_rows():
    """Cross-batch memory: the rows of the batch against each other and those of the step before."""
    memory = peer.CrossBatchMemory(peer.ContrastiveLoss(0, 1.2), 8, memory_size=24)
    labels = torch.tensor(LABELS)
    memory(torch.tensor(Z[:12]), labels[:12])
    # The peer's memory holds the batch itself too, without gradient: values can be compared alone.
    expected = memory(torch.tensor(Z[12:]), labels[12:]).item()
    earlier = losses.Reference(jnp.asarray(Z[:12]), LABELS[:12])
    got = losses.margin_contrastive(
        jnp.asarray(Z[12:]), LABELS[12:], neg_margin=1.2, reference=earlier
    )
    np.testing.assert_allclose(got, expected, rtol=5e-6)

"""Metric learning: the losses that it makes of a network's outputs, its own parameters, its memory, what it refuses."""

import jax
import jax.numpy as jnp
import labelled_run
import numpy as np
import pytest
from labelled_run import BATCH, TREE, config, linear, linear_params, linear_views

from jaxcl import config as config_lib
from jaxcl import losses, optim, train
from jaxcl.data import LabelTree
from jaxcl.methods import SimCLR
from jaxcl.methods.base import advice
from jaxcl.methods.labels import LabelLevels
from jaxcl.methods.metric import Metric
from jaxcl.methods.metric_losses import LOSSES
from jaxcl.metrics import diagnose
from jaxcl.models import HeadSpec

LEVELS = LabelLevels(TREE.levels, (2, 3))
LABELS = np.array([[0, 0], [0, 1], [0, 0], [1, 2], [1, 2], [1, -1]])


VIEWS = {v: config(m).build_method().views for v, m in ((1, "supervised"), (2, "metric"))}
HEAD = HeadSpec(layers=(4,), batch_norm=False, bias=True, init_std=None)


def metric(views=2, **changes):
    return Metric(VIEWS[views], labels=LEVELS, projection=HEAD, **changes)


def outcome(method, params, labels=LABELS, seed=0, extra=None, index=None, views=2):
    labels = jnp.asarray(labels, jnp.int32)
    index = np.arange(BATCH) if index is None else index
    batch = {"label": labels, "index": jnp.asarray(index, jnp.int32)}
    images = linear_views(seed, views)
    key = jax.random.key(0)
    return method.loss(linear, params, {}, extra or {}, batch, images, key)


def embeddings(params, seed=0, views=2):
    images = linear_views(seed, views).images
    return images.reshape(views * BATCH, -1) @ params["w"] @ params["p"]


def with_own(params, method):
    return {**params, "method": method.init_params(jax.random.key(1))}


ROWS = np.repeat(np.where(LABELS[:, 1] < 0, 100, LABELS[:, 1]), 2)


OFTEN = ("margin_contrastive", "triplet", "nt_xent", "multi_similarity", "circle", "arcface")


@pytest.mark.parametrize(
    "name",
    [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES],
)
def test_each_loss_is_that_of_the_embeddings_and_the_chosen_level(name):
    """The views of the image without a label are each other's positives; proxies leave it out."""
    method = metric(objective=name)
    params = with_own(linear_params(0), method)
    function = {"margin": losses.margin_loss, "nt_xent": losses.nt_xent_pairs}.get(name)
    function = function or getattr(losses, name)
    z = jnp.asarray(embeddings(params))
    if LOSSES[name].proxies:
        expected = function(z, np.repeat(LABELS[:, 1], 2), params["method"]["proxies"])
    else:
        expected = function(z, ROWS)
    out = outcome(method, params)
    np.testing.assert_allclose(out.loss, expected, rtol=1e-6)
    assert out.loss > 0
    np.testing.assert_allclose(out.metrics["same_class"], 4 / 6, rtol=1e-6)
    assert out.embeddings.shape == (BATCH, 2, 4)


@pytest.mark.parametrize(
    "name",
    [n if n in ("circle", "nca") else pytest.param(n, marks=pytest.mark.slow) for n in LOSSES],
)
def test_an_image_that_a_batch_has_twice_is_no_pair(name):
    """In one view; in two, the views of both are positives. What has no label is left out of one view."""
    index = np.array([0, 1, 0, 3, 4, 5])
    method = metric(views=1, objective=name)
    params = with_own(linear_params(0), method)
    function = {"margin": losses.margin_loss, "nt_xent": losses.nt_xent_pairs}.get(name)
    function = function or getattr(losses, name)
    z, fine = jnp.asarray(embeddings(params, views=1)), LABELS[:, 1]
    own = (params["method"]["proxies"],) if LOSSES[name].proxies else ()
    told = {} if own else {"images": index}
    out = outcome(method, params, index=index, views=1)
    np.testing.assert_allclose(out.loss, function(z, fine, *own, **told), rtol=1e-6)
    # Of N-pairs one class is left with two images, and nothing to be told from.
    assert (out.loss > 0) == (name != "n_pairs")
    if own:
        np.testing.assert_allclose(out.metrics["mined_anchors"], 5 / 6, rtol=1e-6)
        return
    assert abs(out.loss - function(z, fine)) > 1e-3
    method = metric(objective=name)
    out = outcome(method, params, index=index)
    np.testing.assert_allclose(out.loss, function(jnp.asarray(embeddings(params)), ROWS), rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["lifted_structure", "circle", "nca", "fast_ap", "n_pairs", "multi_similarity"]
)
def test_every_loss_counts_the_anchors_that_count(name):
    method = metric(views=1, objective=name)
    params = {**linear_params(0), "method": {}}
    some = outcome(method, params, views=1).metrics["mined_anchors"]
    # Two classes of two rows, a class of one, and an unknown label.
    np.testing.assert_allclose(some, (2 if name == "n_pairs" else 4) / 6, rtol=1e-6)
    alone = np.arange(BATCH)[:, None].repeat(2, axis=1)
    assert outcome(method, params, alone, views=1).metrics["mined_anchors"] == 0


def test_settings_arrive():
    params = linear_params(1)
    z = jnp.asarray(embeddings(params))
    coarse = np.repeat(LABELS[:, 0], 2)
    for fields, expected in (
        (
            {
                "objective": "triplet",
                "mining": "semihard",
                "margin": 0.5,
                "swap": True,
                "level": "0",
            },
            losses.triplet(z, coarse, 0.5, "semihard", swap=True),
        ),
        (
            {"objective": "triplet", "smooth": True, "distance": "cosine", "reduction": "mean"},
            losses.triplet(z, ROWS, 0.2, "all", "mean", smooth=True, distance="cosine"),
        ),
        (
            {"objective": "margin_contrastive", "pos_margin": 0.3, "mining": "easy_positive"},
            losses.margin_contrastive(z, ROWS, 0.3, mining="easy_positive"),
        ),
        (
            {"objective": "multi_similarity", "mining": "multi_similarity", "epsilon": 0.3},
            losses.multi_similarity(z, ROWS, mining="multi_similarity", epsilon=0.3),
        ),
        (
            {"objective": "nt_logistic", "mining": "semihard", "temperature": 0.5},
            losses.nt_logistic(z, ROWS, 0.5, "semihard"),
        ),
        ({"objective": "fast_ap", "bins": 5}, losses.fast_ap(z, ROWS, 5)),
        (
            {"objective": "hadsell", "distance": "lp", "p": 3.0, "margin": 2.0},
            losses.hadsell(z, ROWS, 2.0, distance=losses.distance("lp", 3.0)),
        ),
        (
            {"objective": "margin_contrastive", "mining": "pair_margin", "mining_pos_margin": 0.5},
            losses.margin_contrastive(z, ROWS, mining="pair_margin", mining_margins=(0.5, 0.8)),
        ),
        (  # Batch-hard with a soft margin, as published: of rows as they are.
            {"mining": "batch_hard", "smooth": True, "margin": 0.0, "normalized": False},
            losses.triplet(z, ROWS, 0.0, "batch_hard", smooth=True, normalized=False),
        ),
        (
            {"objective": "margin_contrastive", "distance": "l1", "normalized": False},
            losses.margin_contrastive(z, ROWS, distance="l1", normalized=False),
        ),
        (
            {"objective": "hadsell", "distance": "squared_l2", "normalized": False},
            losses.hadsell(z, ROWS, distance="squared_l2", normalized=False),
        ),
        (
            {"objective": "margin", "distance": "lp", "p": 3.0, "normalized": False},
            losses.margin_loss(z, ROWS, distance=losses.distance("lp", 3.0), normalized=False),
        ),
        (
            {"objective": "lifted_structure", "distance": "dot", "normalized": False},
            losses.lifted_structure(z, ROWS, distance="dot", normalized=False),
        ),
        ({"objective": "n_pairs", "normalized": True}, losses.n_pairs(z, ROWS, normalized=True)),
        ({"objective": "triplet", "normalized": True}, losses.triplet(z, ROWS)),
        (
            {"objective": "hadsell", "mining": "multi_similarity", "epsilon": 0.4},
            losses.hadsell(z, ROWS, mining="multi_similarity", epsilon=0.4),
        ),
    ):
        method = metric(**fields)
        np.testing.assert_allclose(
            outcome(method, with_own(params, method)).loss, expected, rtol=1e-6, err_msg=str(fields)
        )


def test_the_length_of_rows_counts_where_they_are_not_normalised():
    params = {**linear_params(1), "method": {}}
    longer = {**params, "p": 3 * params["p"]}
    for fields in ({}, {"objective": "margin_contrastive"}, {"objective": "lifted_structure"}):
        for normalized in (None, False):
            method = metric(normalized=normalized, **fields)
            one, other = (float(outcome(method, p).loss) for p in (params, longer))
            assert (abs(one - other) < 1e-5) == (normalized is None)


def test_without_labels_every_image_is_a_class():
    """NT-Xent of images is then SimCLR's."""
    params = linear_params(2)
    method = metric(objective="nt_xent", level="image", temperature=0.1)
    simclr = labelled_run.loss_of(SimCLR(method.views), params, LABELS[:, 0])
    out = outcome(method, {**params, "method": {}}, np.zeros((BATCH, 0)))
    np.testing.assert_allclose(out.loss, simclr.loss, rtol=1e-6)
    assert out.metrics["mined_pairs"] == 2 * BATCH


def test_equal_embeddings_give_the_trivial_loss():
    params = {**linear_params(0), "method": {}}
    params["p"] = np.zeros_like(params["p"])
    for fields in (
        {"objective": "triplet", "margin": 0.3},
        {"objective": "triplet", "mining": "batch_hard"},
        {"objective": "triplet", "smooth": True},
        {"objective": "nt_xent", "level": "image"},
        {"objective": "triplet", "mining": "distance_weighted", "swap": True},
        {"objective": "triplet", "mining": "facenet", "distance": "snr"},
        {"objective": "margin"},
        {"objective": "margin", "mining": "batch_hard", "reduction": "mean"},
        {"objective": "margin", "mining": "distance_weighted", "beta": 0.1},
        {"objective": "margin", "reduction": "mean", "beta": 0.1, "margin": 0.3},
        {"objective": "margin_contrastive", "neg_margin": 0.7},
        {"objective": "margin_contrastive", "mining": "batch_hard", "reduction": "mean"},
        {"objective": "margin_contrastive", "mining": "pair_margin", "pos_margin": 0.1},
        {"objective": "margin_contrastive", "mining": "semihard"},
    ):
        method = metric(**fields)
        value = outcome(method, with_own(params, method)).loss
        assert value > 0
        np.testing.assert_allclose(value, method.trivial_loss(BATCH), rtol=1e-5)
    for fields in (
        {"objective": "triplet", "mining": "semihard"},
        {"objective": "margin", "mining": "easy_positive"},
        {"objective": "margin_contrastive", "mining": "easy_positive"},
        {"objective": "margin_contrastive", "mining": "semihard", "pos_margin": 0.3},
    ):
        method = metric(**fields)
        assert outcome(method, params).loss == 0  # nothing is mined, and nothing said
        assert method.trivial_loss(BATCH) is None
    assert metric(objective="margin", learn_beta="one").trivial_loss(BATCH) is None
    assert metric(objective="nca").trivial_loss(BATCH) is None
    # A cosine of 1 within each pair, whatever is positive.
    params["p"] = np.ones_like(params["p"])
    params["w"] = np.abs(params["w"])
    method = metric(objective="nt_logistic", level="image")
    ones = method.loss(
        lambda *a: ((None, {"projection": (jnp.ones((2 * BATCH, 4)),)}), {}),
        params, {}, {}, {"label": jnp.zeros((BATCH, 1), int), "index": jnp.arange(BATCH)},
        linear_views(0), jax.random.key(0),
    )  # fmt: skip
    np.testing.assert_allclose(ones.loss, method.trivial_loss(BATCH), rtol=1e-5)


@pytest.mark.parametrize("objective", ["triplet", "margin"])
def test_a_band_without_width_is_named(objective):
    with pytest.raises(ValueError, match=r"method\.margin=0 takes .* of which there are none"):
        metric(objective=objective, mining="semihard", margin=0.0)
    metric(objective=objective, mining="all", margin=0.0)


def test_a_collapse_is_told_in_words():
    """Loss equal to the margin, and no spread: begin with semi-hard, in words that are about labels and not about two views."""
    for fields, advised in (
        ({"objective": "triplet", "mining": "batch_hard"}, "begin with semi-hard negatives (method.mining='semihard')"),
        ({"objective": "margin", "mining": "distance_weighted"}, "semi-hard negatives (method.mining='semihard')"),
        ({"objective": "margin_contrastive"}, "a method.pos_margin above 0"),
        ({"objective": "triplet", "mining": "semihard", "smooth": True}, "lower the learning rate"),
    ):  # fmt: skip
        method = metric(**fields)
        loss = method.trivial_loss(BATCH) or 0.2
        rows = [{"step": 200 + i, "loss": loss, "embedding_std": 1e-4} for i in range(6)]
        for std, said in ((1e-4, "collapsed"), (0.9, "or the margin")):
            seen = [{**row, "embedding_std": std} for row in rows]
            (message,) = diagnose(seen, loss, advice=advice(method))
            assert said in message
            assert advised in message
            assert "data.per_class" in message
            assert "both views" not in message
            assert "temperature" not in message
    assert "temperature" in advice(metric(objective="nt_xent", level="image"))
    remembering = metric(objective="margin_contrastive", memory_size=8)
    assert "memory_start" in advice(remembering)
    assert "memory_start" not in advice(metric(objective="margin_contrastive"))
    assert advice(SimCLR(VIEWS[2])) == ""
    (message,) = diagnose(seen, loss)
    assert "both views come from the same image" in message


def test_proxies_and_borders_at_the_network_s_rate_are_told():
    for changes, told in (
        ({"method.objective": "proxy_anchor"}, "proxies"),
        ({"method.objective": "proxy_anchor", "optim.method_lr": 5.0}, ""),
        ({"method.objective": "margin", "method.learn_beta": "one"}, "borders"),
        ({"method.objective": "margin", "method.learn_beta": "class"}, "borders"),
        ({"method.objective": "margin", "method.learn_beta": "one", "optim.method_lr": 5.0}, ""),
        ({"method.objective": "margin"}, ""),
        ({"method.objective": "triplet"}, ""),
    ):
        made = config("metric", **changes).for_labels(TREE)
        said = [line for line in train.notes(made, made.build_method()) if "method_lr" in line]
        assert bool(said) == bool(told)
        assert not told or f"the {told} learn at the network's rate" in said[0]


def test_nothing_to_mine_is_0_and_counted():
    method = metric(objective="triplet", mining="semihard")
    params = {**linear_params(0), "method": {}}

    def loss(params):
        out = outcome(method, params, np.zeros((BATCH, 2), int))
        return out.loss, out.metrics

    (value, measured), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    assert value == 0
    assert measured["mined_triplets"] == measured["active_triplets"] == 0
    assert not any(np.any(x) for x in jax.tree.leaves(gradient))
    some = outcome(method, params).metrics
    assert some["mined_triplets"] > 0
    assert 0 < some["active_triplets"] <= 1


# The method's own parameters


def test_proxies_and_borders_start_as_they_should():
    key = jax.random.key(0)
    proxies = metric(objective="arcface").init_params(key)["proxies"]
    assert proxies.shape == (3, 4)
    assert metric(objective="arcface", level="coarse").init_params(key)["proxies"].shape[0] == 2
    assert metric(objective="arcface", classes=9).init_params(key)["proxies"].shape[0] == 9
    assert metric().init_params(key) == {}
    assert metric(objective="margin").init_params(key) == {}
    one = metric(objective="margin", learn_beta="one", beta=0.9).init_params(key)["beta"]
    assert one.shape == ()
    assert one == np.float32(0.9)
    each = metric(objective="margin", learn_beta="class").init_params(key)["beta"]
    np.testing.assert_array_equal(each, np.full(3, 1.2, np.float32))


def test_borders_are_learned():
    """One for all, or that of the anchor's class; what has no label is held to their mean, and trains none."""
    z = jnp.asarray(embeddings(linear_params(0)))
    fine = np.repeat(LABELS[:, 1], 2)
    own_class = np.stack([fine == number for number in range(3)], axis=1)
    assert not own_class[-1].any()

    def by_hand(beta):
        each = beta if beta.ndim == 0 else own_class @ beta
        border = (
            jnp.where(fine < 0, jax.lax.stop_gradient(jnp.mean(beta)), each) if beta.ndim else each
        )
        return losses.margin_loss(z, ROWS, 0.2, border, nu=0.1)

    borders = np.array([0.8, 1.0, 1.3], np.float32)
    for learned, own in (("one", np.float32(1.1)), ("class", borders)):
        method = metric(objective="margin", learn_beta=learned, nu=0.1)
        params = {**linear_params(0), "method": {"beta": jnp.asarray(own)}}
        value, gradient = jax.value_and_grad(lambda p, m=method: outcome(m, p).loss)(params)
        expected, slope = jax.value_and_grad(by_hand)(jnp.asarray(own))
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient["method"]["beta"], slope, rtol=1e-5)
        assert np.all(slope != 0)


def test_proxies_have_a_learning_rate_of_their_own_and_no_weight_decay():
    made = config("metric", **{"method.objective": "proxy_anchor", "optim.method_lr": 100.0})
    method = made.for_labels(TREE).build_method()
    params = {
        "head_projection": {"dense1": {"kernel": jnp.ones((2, 2))}},
        "method": method.init_params(jax.random.key(0)),
    }
    rules = optim.rules(made.optim, params)
    assert rules["method"]["proxies"].group == "method"
    assert not rules["method"]["proxies"].decay
    schedule = optim.make_schedule(made.optim, 6, 10, 16)
    tx = optim.make_optimizer(made.optim, params, schedule)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    ratio = (
        updates["method"]["proxies"][0, 0] / updates["head_projection"]["dense1"]["kernel"][0, 0]
    )
    np.testing.assert_allclose(ratio, 100 / (1 + made.optim.weight_decay), rtol=1e-5)


# The memory


def test_the_memory_is_a_reference_of_earlier_batches():
    """It holds embeddings and labels of the step before; before its start, and empty, it is not there."""
    method = metric(objective="margin_contrastive", memory_size=14, memory_start=1)
    params = {**linear_params(0), "method": {}, "backbone": jnp.zeros(1)}
    extra = method.init_extra({"params": params}, jax.random.key(0))
    first = outcome(method, params, seed=1, extra=extra)
    alone = losses.margin_contrastive(jnp.asarray(embeddings(params, 1)), ROWS)
    np.testing.assert_allclose(first.loss, alone, rtol=1e-6)
    assert first.metrics["dictionary_filled"] == 0
    extra = method.after_update(extra, params, first.carry, jnp.asarray(1))
    others = np.arange(BATCH) + BATCH
    second = outcome(method, params, seed=2, extra=extra, index=others)
    kept = losses.Reference(
        jnp.asarray(embeddings(params, 1)), jnp.asarray(np.repeat(LABELS[:, 1], 2))
    )
    z = jnp.asarray(embeddings(params, 2))
    expected = losses.margin_contrastive(z, ROWS, reference=kept)
    np.testing.assert_allclose(second.loss, expected, rtol=1e-6)
    assert abs(expected - losses.margin_contrastive(z, ROWS)) > 1e-3
    np.testing.assert_allclose(second.metrics["dictionary_filled"], 12 / 14, rtol=1e-6)
    waits = {**extra, "updates": jnp.asarray(0)}
    early = outcome(method, params, seed=2, extra=waits, index=others)
    np.testing.assert_allclose(early.loss, losses.margin_contrastive(z, ROWS), rtol=1e-6)


def contrastive_by_loops(rows, labels, memory):
    """Margins 0 and 1 over pairs of different rows, and of rows and kept keys [(z, label)]; nothing is of unknown label."""
    near, far = [], []
    for i, (own, label) in enumerate(zip(rows, labels, strict=True)):
        others = [key for j, key in enumerate(zip(rows, labels, strict=True)) if j != i]
        for z, other in others + memory:
            d = np.linalg.norm(own / np.linalg.norm(own) - z / np.linalg.norm(z))
            if other == label:
                near.append(d)
            elif d < 1:
                far.append(1 - d)
    return np.mean(near) + np.mean(far)


@pytest.mark.parametrize("views", [1, 2])
def test_an_image_of_the_batch_is_not_met_in_the_memory(views):
    """What the memory kept of it would be its own positive; what it kept of other images counts."""
    method = metric(views, objective="margin_contrastive", memory_size=views * (BATCH + 2))
    params = {**linear_params(0), "method": {}, "backbone": jnp.zeros(1)}
    extra = method.init_extra({"params": params}, jax.random.key(0))
    labels, index = np.array([0, 1, 0, 2, 2, 1]), np.array([4, 9, 2, 0, 7, 5])
    both = np.stack([labels // 2, labels], axis=1)
    first = outcome(method, params, both, seed=1, extra=extra, index=index, views=views)
    extra = method.after_update(extra, params, first.carry, jnp.asarray(1))
    # Image 4 is there again, image 2 too, at another place.
    index_now, labels_now = np.array([4, 1, 3, 2, 8, 6]), np.array([0, 1, 1, 0, 2, 2])
    both = np.stack([labels_now // 2, labels_now], axis=1)
    second = outcome(method, params, both, seed=2, extra=extra, index=index_now, views=views)

    def by_loops(left_out):
        kept = embeddings(params, 1, views).astype(np.float64)
        keys = zip(kept, np.repeat(labels, views), np.repeat(index, views), strict=True)
        memory = [(z, label) for z, label, image in keys if image not in left_out]
        rows = embeddings(params, 2, views).astype(np.float64)
        return contrastive_by_loops(rows, np.repeat(labels_now, views), memory)

    np.testing.assert_allclose(second.loss, by_loops(index_now), rtol=1e-5)
    assert abs(second.loss - by_loops(())) > 1e-3
    filled = second.metrics["dictionary_filled"]
    np.testing.assert_allclose(filled, (BATCH - 2) / (BATCH + 2), rtol=1e-6)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "tripletts"}, r"method.objective='tripletts': expected one of margin_contrastive, hadsell"),
        ({"temperature": 0.1}, r"method.temperature=0.1 does nothing in the loss 'triplet', which has margin, swap"),
        ({"objective": "nca", "margin": 0.2}, r"method.margin=0.2 does nothing in the loss 'nca', which has scale; leave"),
        ({"mining": "semi"}, r"method.mining='semi' with the loss 'triplet': expected one of all, hard"),
        ({"objective": "circle", "mining": "hard"}, r"expected one of all$"),
        ({"distance": "l3"}, r"method.distance='l3': expected one of l1, l2"),
        ({"reduction": "sum"}, r"method.reduction='sum': expected one of nonzero, mean"),
        ({"mining": "distance_weighted", "distance": "l1"}, r"mining='distance_weighted': expected 'l2'"),
        ({"objective": "multi_similarity", "epsilon": 0.2}, r"method.epsilon=0.2 does nothing without mining"),
        ({"objective": "nt_xent", "temperature": 0.0}, r"method.temperature=0.0: expected a number above 0"),
        ({"objective": "multi_similarity", "beta": 0.0}, r"method.beta=0.0: expected a number above 0"),
        ({"objective": "multi_similarity", "beta": -5.0}, r"method.beta=-5.0: expected a number above 0"),
        (
            {"objective": "multi_similarity", "mining": "multi_similarity", "epsilon": -0.5},
            r"method.epsilon=-0.5: expected a number from 0 on",
        ),
        ({"margin": -1.0}, r"method.margin=-1.0: expected a number from 0 on"),
        ({"margin": float("nan")}, r"method.margin=nan: expected a number from 0 on"),
        ({"objective": "margin", "margin": -1.0}, r"method.margin=-1.0: expected a number from 0 on"),
        ({"objective": "margin", "learn_beta": "one", "nu": -1.0}, r"method.nu=-1.0: expected a number from 0 on"),
        ({"objective": "hadsell", "margin": 0.0}, r"method.margin=0.0: expected a number above 0"),
        ({"objective": "margin_contrastive", "neg_margin": -1.0}, r"method.neg_margin=-1.0: expected a number from 0 on"),
        ({"objective": "margin_contrastive", "neg_margin": 0.0}, r"method.neg_margin=0: there are no negatives nearer than that"),
        ({"objective": "n_pairs", "l2": -1.0}, r"method.l2=-1.0: expected a number from 0 on"),
        ({"objective": "arcface", "margin": -30.0}, r"method.margin=-30.0: expected a number from 0 on"),
        ({"objective": "nca", "normalized": False}, r"method.normalized=False does nothing in the loss 'nca', which has scale"),
        ({"objective": "circle", "normalized": False}, r"method.normalized=False does nothing in the loss 'circle'"),
        ({"distance": "cosine", "normalized": False}, r"method.normalized=False does nothing with distance='cosine'"),
        (
            {"mining": "distance_weighted", "normalized": False},
            r"method.normalized=False with mining='distance_weighted', which goes by the distances of points on a sphere",
        ),
        ({"memory_size": 8, "normalized": False}, r"method.memory_size=8 with normalized=False: the memory keeps rows of"),
        ({"p": 3.0}, r"method.p=3.0 does nothing without distance='lp'"),
        ({"distance": "lp", "p": 0.5}, r"p=0.5: expected a number from 1 on"),
        (
            {"objective": "hadsell", "mining_neg_margin": 0.9},
            r"method.mining_neg_margin=0.9 does nothing without mining='pair_margin'",
        ),
        (
            {"objective": "margin_contrastive", "mining": "pair_margin", "mining_pos_margin": 0.0, "mining_neg_margin": 1.0},
            r"takes all pairs that cost something, as mining='all' does: choose mining='all', or narrower margins",
        ),
        (
            {"objective": "hadsell", "mining": "pair_margin", "mining_neg_margin": 0.0},
            r"there are no negatives nearer than 0; expected a number above 0",
        ),
        ({"objective": "margin", "nu": 0.1}, r"method.nu=0.1 does nothing to a border that is not learned: set method.learn_beta"),
        ({"mining": "easy"}, r"'easy' with the loss 'triplet' takes triplets that cost nothing: choose 'semihard' or"),
        ({"objective": "hadsell", "mining": "easy"}, r"'hadsell' takes negatives beyond the margin, .*: choose 'semihard'"),
        ({"objective": "margin_contrastive", "mining": "easy"}, r"negatives beyond the margin, which cost nothing"),
        ({"objective": "hadsell", "mining": "hard"}, r"nearer than 0, of which there are none: choose 'semihard'$"),
        ({"objective": "margin_contrastive", "mining": "hard"}, r"choose 'semihard', or a method.pos_margin above 0$"),
        (
            {"objective": "margin_contrastive", "mining": "semihard", "pos_margin": 1.2},
            r"negatives from 1.2 to 1, of which there are none",
        ),
        ({"memory_start": 5}, r"method.memory_start=5 does nothing without method.memory_size"),
        ({"memory_size": -1}, r"method.memory_size=-1: expected 0 or more"),
        ({"objective": "arcface", "memory_size": 8}, r"'arcface' holds no row against other rows"),
        ({"objective": "arcface", "level": "image"}, r"'arcface' trains something for each class; expected a label level$"),
        ({"objective": "margin", "learn_beta": "class", "level": "image"}, r"or learn_beta='one'"),
        ({"classes": 3}, r"method.classes=3: 'triplet' trains nothing for each class"),
        ({"level": "genus"}, r"'genus': the data have the levels \['coarse', 'fine'\]"),
        ({"objective": "arcface", "classes": 2}, r"method.classes=2: the data have 3 at level 'fine'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        config("metric", **{f"method.{k}": v for k, v in changes.items()}).for_labels(TREE)


def test_mining_that_leaves_something_is_not_refused():
    metric(mining="easy", smooth=True)
    metric(mining="easy", swap=True)
    metric(objective="margin", mining="easy")
    metric(objective="margin_contrastive", mining="hard", pos_margin=0.2)
    metric(objective="margin_contrastive", mining="hard", distance="dot", pos_margin=-0.9)
    metric(objective="margin_contrastive", distance="dot", pos_margin=-1.0, neg_margin=-0.2)
    metric(objective="circle", margin=-0.1)
    metric(objective="margin", learn_beta="one", nu=0.1)
    metric(objective="margin_contrastive", mining="pair_margin")
    metric(
        objective="margin_contrastive", mining="pair_margin", mining_pos_margin=0, reduction="mean"
    )


def test_one_view_of_images_that_are_classes_is_refused():
    with pytest.raises(ValueError, match="so that there are no positives: add a view"):
        metric(views=1, level="image")


def test_the_levels_of_the_data_are_learned_from_the_data():
    made = config("metric", **{"method.level": "coarse", "method.objective": "proxy_nca"})
    bound = made.for_labels(TREE)
    assert bound.build_method().labels == LEVELS
    assert config_lib.from_dict(config_lib.to_dict(bound)) == bound
    with pytest.raises(config_lib.ConfigError, match="'metric' learns from labels"):
        config("metric").for_labels(LabelTree())
    by_image = config("metric", **{"method.level": "image"})
    assert by_image.for_labels(LabelTree()) == by_image


# Whole steps on several devices


def same_on_eight_devices(**fields):
    made = config("metric", **{f"method.{k}": v for k, v in fields.items()}).for_labels(TREE)
    learned, _ = labelled_run.same_on_eight_devices(made)
    assert all(np.any(x) for x in jax.tree.leaves(learned["method"]))


@pytest.mark.slow
def test_eight_devices_give_the_same_as_one():
    """Negatives mined over all of them, a memory, a learned border."""
    same_on_eight_devices(objective="margin", mining="semihard", learn_beta="class", memory_size=40)


@pytest.mark.slow
def test_eight_devices_with_proxies_and_with_draws():
    same_on_eight_devices(objective="proxy_anchor")
    same_on_eight_devices(objective="triplet", mining="distance_weighted", memory_size=40)


@pytest.mark.slow
def test_a_run_that_is_resumed_in_mid_queue_is_bit_equal(tmp_path):
    """37 slots, 32 keys a step, borders of classes, and negatives that are drawn: all of them go on as they would have."""
    labelled_run.same_when_resumed(
        config(
            "metric",
            **{
                "method.objective": "margin",
                "method.mining": "distance_weighted",
                "method.learn_beta": "class",
                "method.memory_size": 37,
                "method.memory_start": 1,
            },
        ).for_labels(TREE),
        tmp_path,
        lambda state: (
            0 < int(state.extra["queue"].pointer) < 37 and int(state.extra["updates"]) == 3
        ),
    )

"""Similarity learning: its scorers, its loss in every mode against loops, tables, devices, and a whole run."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import labelled_run
import numpy as np
import optax
import pytest
import tiny_network
from labelled_run import BATCH, config, linear_params, linear_views

from jaxcl import checkpoint, data, evaluators, experiment, models, probe, train
from jaxcl import config as config_lib
from jaxcl import mesh as mesh_lib
from jaxcl.evaluators.similarity import spearman
from jaxcl.losses import anchors
from jaxcl.losses import similarity as losses
from jaxcl.losses.scorers import SCORERS, ScorerSpec, mahalanobis_matrix
from jaxcl.methods import Similarity, similarity
from jaxcl.models import HeadSpec

LABELS = np.array([[0, 0], [0, 1], [0, 0], [1, 2], [1, -1], [-1, -1]], np.int32)
WIDTH = 4  # of z of the linear network
MODES = [
    ("regression", "mse"),
    ("regression", "huber"),
    ("classification", "ordinal"),
    ("classification", "binary"),
    ("classification", "multi_class"),
    ("classification", "multi_label"),
    ("ranking", "softplus"),
    ("ranking", "hinge"),
    ("ranking", "list_net"),
    ("ranking", "ndcg"),
]
modes = pytest.mark.parametrize(("mode", "objective"), MODES, ids=[o for _, o in MODES])


def method(**changes):
    views = config("similarity").build_method().views
    fields = {"features": 5, "levels": 2, "projection": HeadSpec((8, WIDTH)), **changes}
    return Similarity(views, **fields)


def params_of(made, seed=0):
    params = linear_params(seed)
    own = made.init_params(jax.random.key(seed))
    if "kernel" in own["scorer"]:  # not symmetric by itself
        own["scorer"]["kernel"] += jax.random.normal(jax.random.key(1), (WIDTH, WIDTH))
    if "map" in own["scorer"]:
        own["scorer"]["map"] += jax.random.normal(jax.random.key(1), own["scorer"]["map"].shape)
    return params | {"method": own}


def loss_of(made, params, labels=LABELS, index=None, **columns):
    index = jnp.arange(BATCH) if index is None else jnp.asarray(index, jnp.int32)
    batch = {"label": jnp.asarray(labels, jnp.int32), "index": index}
    batch |= {name: jnp.asarray(column, jnp.float32) for name, column in columns.items()}

    @jax.jit
    def loss(params, batch):
        args = (labelled_run.linear, params, {}, {}, batch, linear_views(0), jax.random.key(0))
        return made.loss(*args)

    return loss(params, batch)


def embeddings(params):
    images = np.asarray(linear_views(0).images, np.float64)
    return images.reshape(BATCH, 2, -1) @ params["w"] @ params["p"]


# Scorers


def score(spec, params, x, y):
    """One score in float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if spec.name == "cosine":
        return x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) - 1
    if spec.name == "dot":
        return x @ y
    if spec.name == "mahalanobis":
        gap = np.asarray(params["map"], np.float64) @ (x - y)
        return -gap @ gap
    if spec.name == "bilinear":
        a = np.asarray(params["kernel"], np.float64)
        return x @ ((a + a.T) / 2) @ y
    if spec.name == "mlp":
        p = {name: np.asarray(value, np.float64) for name, value in params.items()}
        both = np.concatenate([abs(x - y), x * y])
        return np.maximum(both @ p["kernel1"] + p["bias1"], 0) @ p["kernel2"] + p["bias2"]
    order = {"l1": 1, "l2": 2, "squared_l2": 2, "lp": spec.p}[spec.name]
    return -(np.linalg.norm(x - y, order) ** (2 if spec.name == "squared_l2" else 1))


@pytest.mark.parametrize("name", SCORERS)
def test_scorers_equal_loops_and_are_symmetric(name):
    spec = ScorerSpec(name, **{"lp": {"p": 3.0}, "mlp": {"hidden": 5}}.get(name, {}))
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, WIDTH)).astype(np.float32) for n in (3, 4))
    params = params_of(method(scorer=spec))["method"]["scorer"]
    assert bool(params) == spec.learned
    expected = [[score(spec, params, a, b) for b in y] for a in x]
    np.testing.assert_allclose(spec.of_pairs(params, x, y), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(spec.of_pairs(params, y, x).T, expected, rtol=1e-4, atol=1e-5)
    rows = spec.of_rows(params, x, y[:3])
    np.testing.assert_allclose(rows, np.diag(expected), rtol=1e-4, atol=1e-5)
    same = np.diag(spec.of_pairs(params, x, x))
    if spec.highest is not None:
        np.testing.assert_allclose(same, spec.highest, atol=1e-6)
        assert np.max(expected) <= 0
    slope = jax.grad(lambda p, x: spec.of_pairs(p, x, 0 * x).sum(), argnums=(0, 1))(params, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_learned_scorers_start_as_what_is_known():
    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=(3, 6)).astype(np.float32) for _ in range(2))
    for name, given in (("mahalanobis", "squared_l2"), ("bilinear", "dot")):
        params = ScorerSpec(name).init(jax.random.key(0), 6)
        expected = ScorerSpec(given).of_pairs({}, x, y)
        np.testing.assert_allclose(ScorerSpec(name).of_pairs(params, x, y), expected, rtol=1e-5)
    low = ScorerSpec("mahalanobis", rank=2).init(jax.random.key(0), 6)
    assert low["map"].shape == (2, 6)
    values = np.linalg.eigvalsh(mahalanobis_matrix(low))
    assert (values > 1e-3).sum() == 2
    assert values.min() > -1e-5


# The loss


def by_loops(made, params, labels, index=None):
    """The loss of the batch's views, pair by pair."""
    z = embeddings(params).reshape(2 * BATCH, -1)
    image = np.repeat(np.arange(BATCH), 2)
    number = image if index is None else np.repeat(index, 2)
    n, own = len(z), params["method"]
    scores = np.array([[score(made.scorer, own["scorer"], a, b) for b in z] for a in z])
    target = np.full((n, n), np.nan)
    for i, j in itertools.product(range(n), repeat=2):
        a, b = labels[image[i]], labels[image[j]]
        depth = sum(bool(a[k] == b[k] >= 0) for k in range(2))
        if i != j and number[i] == number[j]:
            target[i, j] = 1
        elif i != j and min(a[0], b[0]) >= 0:
            target[i, j] = depth / 2
    if made.mode == "ranking":
        function = {
            "hinge": lambda s, t: losses.ordered_triples(s, t, "hinge", made.margin),
            "softplus": lambda s, t: losses.ordered_triples(s / 0.1, t),
            "list_net": lambda s, t: losses.list_net(s / 0.1, t, made.sharpness),
            "ndcg": lambda s, t: losses.smooth_ndcg(s / 0.1, t),
        }[made.loss_name]
        some = [i for i in range(n) if len(set(target[i][~np.isnan(target[i])])) > 1]
        return np.mean([float(function(scores[i][None], target[i][None])[0]) for i in some])
    c = {name: np.asarray(value, np.float64) for name, value in own["calibration"].items()}
    prices = {}
    for i, j in itertools.product(range(n), repeat=2):
        s, t = scores[i, j], target[i, j]
        if not np.isnan(t):
            prices.setdefault(t if made.balanced else "all", []).append(pair_price(made, c, s, t))
    return np.mean([np.mean(prices[t]) for t in prices])


def pair_price(made, c, s, t):
    if made.mode == "regression":
        gap = abs(math.exp(c["slope"]) * s + c["offset"] - t)
        if made.loss_name == "mse":
            return gap**2
        return gap**2 / 2 if gap < made.delta else made.delta * (gap - made.delta / 2)

    def bce(x, y):
        return math.log1p(math.exp(-x)) if y else math.log1p(math.exp(x))

    grade = round(2 * t)
    if made.loss_name == "binary":
        return bce(math.exp(c["slope"][0]) * s + c["offset"][0], t >= made.threshold)
    if made.loss_name == "multi_label":
        return np.mean(
            [bce(math.exp(c["slope"][k]) * s + c["offset"][k], grade > k) for k in range(2)]
        )
    if made.loss_name == "ordinal":
        first, second = c["offset"], c["offset"] - math.log1p(math.exp(c["steps"][0]))
        slope = math.exp(c["slope"])
        return bce(slope * s + first, grade > 0) + bce(slope * s + second, grade > 1)
    logits = np.exp([c["slope"][k] * s + c["offset"][k] for k in range(3)])
    return -math.log(logits[grade] / logits.sum())


@modes
def test_the_loss_equals_loops(mode, objective):
    others = {} if mode == "ranking" else {"balanced": False}
    for changes in ({}, {"scorer": ScorerSpec("mahalanobis"), **others}):
        made = method(mode=mode, objective=objective, **changes)
        params = params_of(made)
        params["p"] = params["p"] * (1 if made.scorer.name == "cosine" else 0.05)
        out = loss_of(made, params)
        np.testing.assert_allclose(out.loss, by_loops(made, params, LABELS), rtol=2e-4)
        assert out.loss.dtype == jnp.float32


@pytest.mark.parametrize("mode", ["regression", "ranking"])
def test_an_image_that_a_batch_has_twice_is_like_itself(mode):
    """Whatever of its labels is known: without the number of the image it would agree with itself at the known levels alone."""
    made = method(mode=mode, balanced=False) if mode == "regression" else method(mode=mode)
    params = params_of(made)
    labels, index = LABELS[[0, 1, 4, 3, 4, 5]], [0, 1, 4, 3, 4, 5]
    found = loss_of(made, params, labels, index).loss
    np.testing.assert_allclose(found, by_loops(made, params, labels, index), rtol=2e-4)
    assert abs(found - by_loops(made, params, labels)) > 1e-3


@modes
def test_nothing_known_is_no_loss_and_no_gradient(mode, objective):
    made = method(mode=mode, objective=objective)
    params = params_of(made)
    unlabelled = np.full_like(LABELS, -1)  # an image's own views are known to be alike

    @jax.jit
    @jax.value_and_grad
    def both(params, labels):
        batch = {"label": labels, "index": jnp.arange(BATCH)}
        args = (labelled_run.linear, params, {}, {}, batch, linear_views(0), jax.random.key(0))
        return made.loss(*args).loss

    for labels, silent in ((unlabelled, mode == "ranking"), (0 * LABELS, mode == "ranking")):
        value, slope = both(params, labels)
        assert np.isfinite(value)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))
        if silent:
            assert value == 0
            assert not any(np.any(x) for x in jax.tree.leaves(slope))
    # Embeddings that are all equal are a kink of most scorers.
    flat = {**params, "w": np.zeros_like(params["w"])}
    _, slope = both(flat, LABELS)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))


def test_similarities_can_be_given_for_each_depth():
    """Codes that count as their subcategory: two grades are left, and one edge between each two."""
    made = method(mode="classification", by_depth=(0.0, 0.8, 0.8))
    np.testing.assert_allclose(made.grade_edges(2), [0.4])
    params = params_of(made)
    assert params["method"]["calibration"]["steps"].shape == (0,)
    plain = method(
        mode="classification", objective="binary", threshold=0.4, by_depth=(0.0, 0.8, 0.8)
    )
    binary = params | {"method": plain.init_params(jax.random.key(0))}
    np.testing.assert_allclose(loss_of(made, params).loss, loss_of(plain, binary).loss, rtol=1e-6)


def test_the_metrics_are_those_of_the_known_pairs():
    made = method(mode="regression")
    params = params_of(made)
    out = loss_of(made, params)
    z = embeddings(params).reshape(2 * BATCH, -1)
    image = np.repeat(np.arange(BATCH), 2)
    s, t = [], []
    for i, j in itertools.permutations(range(2 * BATCH), 2):
        a, b = LABELS[image[i]], LABELS[image[j]]
        if image[i] == image[j] or min(a[0], b[0]) >= 0:
            s.append(score(made.scorer, {}, z[i], z[j]))
            t.append(1 if image[i] == image[j] else np.sum((a == b) & (a >= 0)) / 2)
    np.testing.assert_allclose(out.metrics["pearson"], np.corrcoef(s, t)[0, 1], rtol=1e-3)
    assert out.metrics["known_pairs"] == len(s)


# Tables


def test_pairs_of_a_table_are_rows_of_the_batch():
    made = method(mode="regression", target="pairs")
    assert made.columns == ("pair",)
    params = params_of(made)
    z = embeddings(params)
    target = np.array([0.3, 0.3, np.nan, np.nan, 0.9, 0.9])
    prices = [
        (score(made.scorer, {}, z[i, v], z[i + 1, v]) + 1 - target[i]) ** 2
        for i in (0, 4)
        for v in (0, 1)
    ]
    out = loss_of(made, params, pair=target)
    np.testing.assert_allclose(out.loss, np.mean(prices), rtol=1e-5)
    assert out.metrics["known_pairs"] == 4
    # Half a pair is known no better than none of it.
    target[3] = 0.5
    np.testing.assert_allclose(loss_of(made, params, pair=target).loss, np.mean(prices), rtol=1e-5)
    # Ranking puts the pairs of the batch in order.
    ranking = method(mode="ranking", objective="hinge", target="pairs", margin=5.0)
    scores = [score(made.scorer, {}, z[i, v], z[i + 1, v]) for i in (0, 4) for v in (0, 1)]
    expected = np.mean([5 - (high - low) for high in scores[2:] for low in scores[:2]])
    found = loss_of(ranking, params_of(ranking), pair=target).loss
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_triples_of_a_table():
    made = method(mode="ranking", objective="softplus", target="triples", temperature=1.0)
    assert made.columns == ("triple",)
    params = params_of(made)
    z = embeddings(params)
    prices = []
    for first, v in itertools.product((0, 3), (0, 1)):
        a, p, n = z[first, v], z[first + 1, v], z[first + 2, v]
        lead = score(made.scorer, {}, a, p) - score(made.scorer, {}, a, n)
        prices.append(math.log1p(math.exp(-lead)))
    out = loss_of(made, params, triple=np.ones(6))
    np.testing.assert_allclose(out.loss, np.mean(prices), rtol=1e-5)
    out = loss_of(made, params, triple=[1, 1, np.nan, 1, 1, 1])
    np.testing.assert_allclose(out.loss, np.mean(prices[2:]), rtol=1e-5)
    # The positive is similar, the negative is not: also to a classifier.
    classifier = method(mode="classification", objective="binary", target="triples")
    own = params_of(classifier)
    expected = []
    for first, v, other in itertools.product((0, 3), (0, 1), (1, 2)):
        x = (score(made.scorer, {}, z[first, v], z[first + other, v]) + 0.5) / 0.1
        expected.append(math.log1p(math.exp(-x if other == 1 else x)))
    out = loss_of(classifier, own, triple=np.ones(6))
    np.testing.assert_allclose(out.loss, np.mean(expected), rtol=1e-5)


def in_respects(made, params, **columns):
    """`loss_of` on a network with a linear head for each respect, at params[respect]."""
    batch = {"label": jnp.asarray(LABELS), "index": jnp.arange(BATCH)}
    batch |= {f"pair/{name}": jnp.asarray(x, jnp.float32) for name, x in columns.items()}

    def apply(params, batch_stats, images, train, key):
        x = images.reshape(len(images), -1)
        return (x, {name: (x @ params[name],) for name in made.heads}), batch_stats

    run = jax.jit(
        lambda *a: made.loss(apply, a[0], {}, {}, a[1], linear_views(0), jax.random.key(0))
    )
    return run(params, batch)


@pytest.mark.parametrize("mode", ["regression", "classification", "ranking"])
def test_each_respect_of_a_table_has_a_space(mode):
    """Regression, several labels and order: in each respect by its own head, scorer and numbers, and all respects count alike."""
    objective = {"regression": "mse", "classification": "binary", "ranking": "softplus"}[mode]
    scorer = ScorerSpec("mahalanobis", rank=3)
    made = method(
        mode=mode, objective=objective, target="pairs", respects=("style", "colour"), scorer=scorer
    )
    assert set(made.heads) == {"style", "colour"}
    assert made.columns == ("pair/style", "pair/colour")
    rng = np.random.default_rng(4)
    kernels = {name: rng.normal(size=(12, WIDTH)).astype(np.float32) / 5 for name in made.heads}
    params = {**kernels, "method": made.init_params(jax.random.key(0))}
    own = params["method"]
    assert not np.array_equal(own["style"]["scorer"]["map"], own["colour"]["scorer"]["map"])
    nan = np.nan
    known = {"style": [0.2, 0.2, 0.9, 0.9, nan, nan], "colour": [1, 1, 0.4, 0.4, 0.6, 0.6]}

    def by_loops(name):
        images = np.asarray(linear_views(0).images, np.float64)
        z = images.reshape(BATCH, 2, -1) @ kernels[name]
        pairs = [
            (score(scorer, own[name]["scorer"], z[i, v], z[i + 1, v]), known[name][i])
            for i in range(0, BATCH, 2)
            for v in range(2)
            if not np.isnan(known[name][i])
        ]
        if mode == "regression":
            return np.mean([(s + 1 - t) ** 2 for s, t in pairs])
        if mode == "ranking":
            leads = [
                (a - b) / 0.1 for (a, t), (b, u) in itertools.product(pairs, repeat=2) if t > u
            ]
            return np.mean([math.log1p(math.exp(-lead)) for lead in leads])
        logits = [((s + 0.5) / 0.1, t >= 0.5) for s, t in pairs]
        return np.mean([math.log1p(math.exp(-x if similar else x)) for x, similar in logits])

    out = in_respects(made, params, **known)
    expected = {name: by_loops(name) for name in made.heads}
    np.testing.assert_allclose(out.loss, np.mean(list(expected.values())), rtol=1e-4)
    assert (out.metrics["known_pairs_style"], out.metrics["known_pairs_colour"]) == (4, 6)
    assert set(out.metrics) == {f"{m}_{r}" for m in ("pearson", "known_pairs") for r in made.heads}
    assert out.embeddings.shape == (BATCH, 2, 2 * WIDTH)
    # What nothing is known of in this batch does not count.
    out = in_respects(made, params, **{**known, "style": [nan] * BATCH})
    np.testing.assert_allclose(out.loss, expected["colour"], rtol=1e-4)


def test_respects_that_a_table_does_not_have_are_named():
    made = method(mode="regression", target="pairs", respects=("style",))
    params = {"style": np.zeros((12, WIDTH)), "method": made.init_params(jax.random.key(0))}
    with pytest.raises(
        ValueError,
        match=r"respects=\('style',\): the table .* has the columns similarity:a, similarity:b; expected",
    ):
        in_respects(made, params, a=np.ones(BATCH), b=np.ones(BATCH))
    plain = method(mode="regression", target="pairs")
    with pytest.raises(
        ValueError, match=r"respects=\(\): the table .* has the columns similarity:a;"
    ):
        loss_of(plain, params_of(plain), **{"pair/a": np.ones(BATCH)})
    with pytest.raises(ValueError, match="has the columns similarity:repairs;"):
        in_respects(made, params, repairs=np.ones(BATCH))
    with pytest.raises(ValueError, match="the batch has no pairs; name a table"):
        in_respects(made, params)


# What cannot be


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mode": "rank"},
            "method.mode='rank': expected one of regression, classification, ranking",
        ),
        ({"mode": "regression", "objective": "hinge"}, "mode 'regression' has mse, huber"),
        ({"target": "labels"}, "expected one of tree, pairs, triples"),
        ({"temperature": 0.0}, "method.temperature=0.0: expected a number above 0"),
        ({"margin": -1.0}, "method.margin=-1.0"),
        ({"by_depth": (0.0, 1.0)}, r"2 level\(s\); expected 3 similarities"),
        ({"by_depth": (0.0, 1.0), "target": "pairs"}, "it is for target='tree'"),
        ({"mode": "classification", "target": "pairs"}, "'ordinal' needs the numbers that divide"),
        ({"edges": (0.5, 0.2)}, "that ascend"),
        ({"respects": ("style",)}, "they are for target='pairs', not 'tree'"),
        ({"respects": ("a", "a"), "target": "pairs"}, "expected different names of letters"),
        ({"respects": ("a b",), "target": "pairs"}, "expected different names of letters"),
        ({"respects": ("é",), "target": "pairs"}, "expected different names of letters"),
        ({"by_depth": (0.0, 1.0, 0.5)}, "numbers that nowhere fall"),
        ({"by_depth": (1.0, 1.0, 1.0)}, "and rise somewhere"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        method(**changes)
    with pytest.raises(ValueError, match=r"scorer\.name='cos': expected one of l1"):
        ScorerSpec("cos")


USED = {
    "temperature": (0.3, {"ordinal", "binary", "multi_class", "multi_label", "softplus", "list_net", "ndcg"}),
    "margin": (0.3, {"hinge"}),
    "delta": (0.3, {"huber"}),
    "threshold": (0.3, {"binary"}),
    "edges": ((0.3,), {"ordinal", "multi_class", "multi_label"}),
    "sharpness": (3.0, {"list_net"}),
    "balanced": (False, {"mse", "huber", "ordinal", "binary", "multi_class", "multi_label"}),
}  # fmt: skip


@pytest.mark.parametrize("field", USED)
def test_settings_that_do_nothing_are_refused(field):
    value, users = USED[field]
    for mode, objective in MODES:
        fields = {"mode": mode, "objective": objective, field: value}
        if objective in users:
            assert getattr(method(**fields), field) == value
        else:
            with pytest.raises(
                ValueError, match=rf"method\.{field}=.* does nothing in '{objective}'"
            ):
                method(**fields)


def test_settings_of_another_target_or_scorer_are_refused():
    with pytest.raises(
        ValueError, match=r"balanced=False does nothing in 'mse' with target='pairs'"
    ):
        method(mode="regression", target="pairs", balanced=False)
    for field, value, owner in (("p", 3.0, "lp"), ("rank", 2, "mahalanobis"), ("hidden", 5, "mlp")):
        for name in SCORERS:
            if name == owner:
                assert getattr(ScorerSpec(name, **{field: value}), field) == value
            else:
                with pytest.raises(ValueError, match=rf"scorer\.{field}={value} does nothing in"):
                    ScorerSpec(name, **{field: value})


def test_a_table_and_a_method_that_reads_it_come_together():
    mesh = mesh_lib.make_mesh(jax.devices()[:1])

    def build(name, pairs, **fields):
        made = config_lib.to_dict(config(name, **{f"method.{k}": v for k, v in fields.items()}))
        made["data"]["pairs"] = pairs
        return experiment.build(config_lib.from_dict(made), mesh, (8, 8, 1), 2, 2)

    with pytest.raises(ValueError, match=r"'simclr' reads no pairs or triples"):
        build("simclr", {"train": "pairs.csv"})
    with pytest.raises(ValueError, match=r"'similarity' reads no pairs or triples"):
        build("similarity", {"train": "pairs.csv"})
    for pairs in ({}, {"val": "pairs.csv"}):
        with pytest.raises(ValueError, match=r"a column 'pair' of each batch, and data\.pairs"):
            build("similarity", pairs, mode="regression", target="pairs")


def test_data_that_do_not_fit_are_named():
    made = method()
    with pytest.raises(ValueError, match="the images have no labels; say where they are"):
        loss_of(made, params_of(made), np.zeros((BATCH, 0), np.int32))
    made = method(target="pairs", mode="regression")
    with pytest.raises(
        ValueError, match=r"no pairs; name a table of them in data\.pairs\['train'\]"
    ):
        loss_of(made, params_of(made), triple=np.ones(6))
    with pytest.raises(ValueError, match="number of label levels is not known"):
        method(levels=0, mode="classification").init_params(jax.random.key(0))
    with pytest.raises(ValueError, match="width of z is that of h"):
        method(features=0, projection=HeadSpec(())).init_params(jax.random.key(0))


# Devices, blocks, and a run


@pytest.mark.parametrize("objective", ["list_net", "ordinal"])
def test_the_number_of_devices_does_not_matter(objective, monkeypatch):
    """The loss on 1, 2, 4 and 8 devices, in blocks of few rows of each and as a whole."""
    mode = "classification" if objective == "ordinal" else "ranking"
    with jax.enable_x64(True):
        _same_on_all_devices(mode, objective, monkeypatch)


def _same_on_all_devices(mode, objective, monkeypatch):
    made = method(mode=mode, objective=objective, scorer=ScorerSpec("mlp", hidden=4))
    own, z, labels = embedded(made, 32)
    both = value_and_slopes(made)
    reference = jax.jit(both)(own, z, labels)
    monkeypatch.setattr(anchors, "ELEMENTS", 3 * 2 * 32 * (2 * WIDTH + 4))
    for devices in (1, 2, 4, 8) if objective == "list_net" else (8,):
        mesh = mesh_lib.make_mesh(jax.devices()[:devices])
        rows, whole = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
        step = jax.jit(
            experiment.in_sight_of(mesh, both),
            in_shardings=(whole, rows, rows),
        )
        found = step(own, jax.device_put(z, rows), jax.device_put(labels, rows))
        assert found[0].dtype == np.float64
        np.testing.assert_allclose(found[0], reference[0], rtol=1e-10)
        assert labelled_run.distance(found[1], reference[1]) <= 1e-10


def embedded(made, images):
    """Parameters of the method, embeddings z[B, 2, D] in float64, and labels, some of which are not known."""
    rng = np.random.default_rng(3)
    z = rng.normal(size=(images, 2, WIDTH))
    coarse, fine = rng.integers(-1, 3, images), np.arange(images) % 12 // 4
    labels = np.stack([coarse, np.where(coarse < 0, -1, fine)], 1).astype(np.int32)
    return made.init_params(jax.random.key(0)), z, labels


def value_and_slopes(made):
    """(parameters of the method, embeddings, labels) -> the loss, and its gradients by the first two."""

    def apply(params, batch_stats, images, train, key):
        return (images, {"projection": (images,)}), batch_stats

    def loss(own, z, labels):
        views = labelled_run.Views(z, {})
        batch = {"label": labels, "index": jnp.arange(len(z))}
        return made.loss(apply, {"method": own}, {}, {}, batch, views, jax.random.key(0)).loss

    return jax.value_and_grad(loss, argnums=(0, 1))


@pytest.mark.parametrize("objective", ["ndcg", "mse"])
def test_blocks_change_nothing(objective, monkeypatch):
    """Five rows of fourteen at a time, the last block filled up with zeros, where distances have a kink."""
    mode = "ranking" if objective == "ndcg" else "regression"
    made = method(mode=mode, objective=objective, scorer=ScorerSpec("l2"))
    own, z, labels = embedded(made, 7)
    z = z.astype(np.float32)
    expected = jax.jit(value_and_slopes(made))(own, z, labels)
    monkeypatch.setattr(anchors, "ELEMENTS", 5 * 14 * (14 if objective == "ndcg" else 2))
    found = jax.jit(value_and_slopes(made))(own, z, labels)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    assert labelled_run.distance(found[1], expected[1]) <= 1e-5


# What was planted


SCALES = np.array([2, 1.5, 1, 0, 0, 0], np.float32)
"""Of the features that images are similar by; the others are noise of the same size."""


def alike(x, y):
    """1 for two images that agree in what counts, falling to 0."""
    return jnp.exp(-jnp.sum(jnp.square((x - y) * SCALES), axis=-1) / 12)


def told(made, similarity):
    """What a table says: such a number, or for regression, where any will do, its logarithm."""
    return jnp.log(similarity) if made.mode == "regression" else similarity


def dense(params, batch_stats, images, train, key):
    """A network of one layer, of images that are six numbers."""
    z = images.reshape(len(images), 6) @ params["w"]
    return (z, {"projection": (z,)}), batch_stats


def planted_batch(made, key, size=96):
    """Images [B, 1, 1, 1, 6], and what a table, or a tree, says of them."""
    x = jax.random.normal(key, (size, 6))
    batch = {"label": jnp.zeros((size, 0), jnp.int32), "index": jnp.arange(size)}
    if made.target == "pairs":
        batch["pair"] = jnp.repeat(told(made, alike(x[::2], x[1::2])), 2)
    elif made.target == "triples":
        a, p, n = x[::3], x[1::3], x[2::3]
        nearer = (alike(a, p) > alike(a, n))[:, None]
        x = jnp.stack([a, jnp.where(nearer, p, n), jnp.where(nearer, n, p)], 1).reshape(x.shape)
        batch["triple"] = jnp.ones(size)
    else:
        # Two features say what is coarse and a third what is fine; its place within its leaf does not matter.
        coarse, fine = jnp.arange(size) % 4, jnp.arange(size) // 4 % 3
        places = jnp.stack([coarse % 2 * 3.0, coarse // 2 * 3.0, fine * 0.7], 1)
        x = 2 * x.at[:, :3].set(places / 2 + 0.05 * x[:, :3])
        batch["label"] = jnp.stack([coarse, 3 * coarse + fine], 1)
    return x.reshape(size, 1, 1, 1, 6), batch


def learned(made, steps=400, rate=0.03):
    """Parameters before and after Adam on batches of new images."""
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def start(key):
        w = 0.4 * jax.random.normal(key, (6, 6))
        return {"w": w, "method": made.init_params(key)}

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            images, batch = planted_batch(made, key)

            def loss(params):
                views = labelled_run.Views(images, {})
                return made.loss(dense, params, {}, {}, batch, views, key).loss

            value, slope = jax.value_and_grad(loss)(params)
            updates, state = tx.update(slope, state, params)
            return (optax.apply_updates(params, updates), state), value

        keys = jax.random.split(jax.random.key(1), steps)
        return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]

    params = start(jax.random.key(0))
    return params, train(params)


PLANTED = [
    ("regression", "mse", "pairs", "mahalanobis"),
    ("regression", "huber", "tree", "squared_l2"),
    ("classification", "ordinal", "pairs", "squared_l2"),
    ("classification", "binary", "pairs", "mahalanobis"),
    ("classification", "multi_class", "pairs", "squared_l2"),
    ("classification", "multi_label", "tree", "l2"),
    ("ranking", "softplus", "triples", "mahalanobis"),
    ("ranking", "hinge", "triples", "l2"),
    ("ranking", "list_net", "pairs", "squared_l2"),
    ("ranking", "ndcg", "tree", "l2"),
]


@pytest.mark.parametrize(
    ("mode", "objective", "target", "scorer"),
    [
        row
        if row[1] in ("mse", "binary", "softplus")
        else pytest.param(*row, marks=pytest.mark.slow)
        for row in PLANTED
    ],
    ids=[row[1] for row in PLANTED],
)
def test_what_was_planted_is_recovered(mode, objective, target, scorer):
    """A network, a scorer and its calibration, on a table or a tree: new images are scored as they should be, by the scorer."""
    graded = objective in ("ordinal", "multi_class", "multi_label") and target == "pairs"
    made = method(
        mode=mode,
        objective=objective,
        target=target,
        projection=HeadSpec(()),
        features=6,
        scorer=ScorerSpec(scorer),
        edges=(0.2, 0.6) if graded else (),
        temperature=1.0 if "temperature" in similarity._SETTINGS[objective] else 0.1,
    )
    images, batch = planted_batch(made, jax.random.key(7), 240)
    x = np.asarray(images).reshape(240, 6)
    rows = np.random.default_rng(0).permuted(np.tile(np.arange(240), (20, 1)), axis=1)
    rows = rows.reshape(-1, 3)

    def scored(params, by_scorer=True):
        own = made.scoring(params["method"], "projection") if by_scorer else None
        h = np.asarray(x @ params["w"], np.float32)
        features = evaluators.Features(h, np.asarray(batch["label"], np.int32))
        if target == "tree":
            return evaluators.tree_similarity(features, scoring=own)
        truth = np.asarray(alike(x[rows[:, 0]], x[rows[:, 1]]))
        table = data.PairTable(rows[:, :2], np.asarray(told(made, truth)), 240, "")
        found = evaluators.table_similarity(features, table, scoring=own)
        similar = (truth > 0.5).astype(np.float32)
        two = evaluators.table_similarity(
            features, data.PairTable(rows[:, :2], similar, 240, ""), scoring=own
        )
        other = np.asarray(alike(x[rows[:, 0]], x[rows[:, 2]]))
        triples = np.where((truth > other)[:, None], rows, rows[:, [0, 2, 1]])
        order = evaluators.table_similarity(
            features, data.PairTable(triples, None, 240, ""), scoring=own
        )
        return dataclasses.replace(found, auc=two.auc, triplet_accuracy=order.triplet_accuracy)

    def found(result):
        if mode == "ranking":
            return result.triplet_accuracy
        # Of a tree most pairs are equally similar, so that no order of them is a good one.
        return result.spearman if mode == "regression" and target != "tree" else min(result.auc)

    start, end = learned(made)
    before, after, cosine = scored(start), scored(end), scored(end, by_scorer=False)
    bound = 0.9 if mode == "regression" else 0.95
    assert found(after) > bound
    assert max(found(before), found(cosine)) < bound
    if mode == "regression":
        assert after.predicted["error"] < min(0.25, before.predicted["error"] / 2)
    if mode == "classification":
        assert after.predicted["balanced_accuracy"] > 0.8


TABLES = {
    "pairs": {"mode": "regression", "target": "pairs", "scorer.name": "mahalanobis"},
    "respects": {
        "mode": "classification",
        "objective": "binary",
        "target": "pairs",
        "respects": ("style", "colour"),
        "scorer.name": "mlp",
    },
    "triples": {"mode": "ranking", "target": "triples", "scorer.name": "bilinear"},
}


def on_a_table(name):
    """24 images a step, which are pairs, triples and rows of eight devices."""
    fields = {f"method.{key}": value for key, value in TABLES[name].items()}
    return config("similarity", batch_size=24, **fields).for_run(240, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pairs", "triples"])
def test_eight_devices_give_the_same_as_one_on_a_table(name):
    """Pairs and triples lie across the devices: three images are on each, and a triple of two views is six rows."""
    learned, _ = labelled_run.same_on_eight_devices(on_a_table(name))
    assert all(np.any(x) for x in jax.tree.leaves(learned["method"]))


@pytest.mark.slow
def test_a_run_on_a_table_that_is_resumed_is_bit_equal(tmp_path):
    labelled_run.same_when_resumed(on_a_table("respects"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("respects", [(), ("same", "near")])
def test_a_run_on_a_table_of_pairs(respects, tmp_path, monkeypatch):
    """Digits with a table: trained, scored on a table of other images, by its scorer too, and refused with another table."""
    monkeypatch.setattr(models, "build", tiny_network.build)
    labelled_run.write_digits(tmp_path, train=60, test=40)
    rng = np.random.default_rng(0)

    def table(name, split, rows):
        source = data.load(data.DataConfig(name="idx", path=str(tmp_path)), split)
        lines = []
        for _ in range(rows):
            a, b = rng.choice(len(source), size=2, replace=False)
            gap = abs(int(source.labels[a, 0]) - int(source.labels[b, 0]))
            near = ("", f",{int(gap < 3)}" if len(lines) % 4 else ",")[bool(respects)]
            lines.append(f"{source.name(a)},{source.name(b)},{int(gap == 0)}{near}\n")
        columns = ",".join(f"similarity:{name}" for name in respects) or "similarity"
        (tmp_path / name).write_text(f"a,b,{columns}\n" + "".join(lines))
        return str(tmp_path / name)

    made = config(
        "similarity",
        **{
            "data.path": str(tmp_path),
            "batch_size": 16,
            "steps": 3,
            "method.mode": "classification",
            "method.objective": "binary",
            "method.target": "pairs",
            "method.respects": respects,
            "method.scorer.name": "l1",
            "evaluation.gallery": "train",
            "evaluation.validation": "test",
            "evaluation.test": "test",
            "evaluation.linear": False,
            "evaluation.baselines": False,
            "evaluation.ks": (1,),
            "evaluation.extra": ("similarity",),
            "evaluation.batch_size": 40,
        },
    )
    pairs = {"train": table("train.csv", "train", 50), "test": table("test.csv", "test", 30)}
    plain = config_lib.to_dict(made)
    plain["data"]["pairs"] = pairs
    made = config_lib.from_dict(plain)
    result = train.train(made, str(tmp_path / "run"))
    assert result["complete"]
    assert np.isfinite(result["metrics"]["loss"])
    values = {(r["method"], r["level"]): r["accuracy"] for r in result["rows"]}
    levels = [f"pairs/{name}" for name in respects] or ["pairs"]
    for level in levels:
        assert 0 <= values["similarity/auc", level] <= 1
        assert -1 <= values["similarity/spearman", level] <= 1
    assert ("similarity/spearman", "all") in values  # the labels have their own rows

    options = probe.Options(str(tmp_path / "run"), evaluations=("similarity",), baselines=False)
    probed = {(r["method"], r["level"]): r["accuracy"] for r in probe.probe(options)["rows"]}
    for level in levels:
        assert probed["similarity/auc", level] == pytest.approx(values["similarity/auc", level])
    if respects:
        (own, *_) = probe.probe(dataclasses.replace(options, layer="z:near"))["rows"]
        assert own["features"] == probe.TRAINED
    # z is scored by the scorer and the calibration of the checkpoint.
    options = dataclasses.replace(
        options,
        layer=f"z:{respects[-1] if respects else 'projection'}",
        evaluations=("similarity", "retrieval"),
    )
    rows = probe.probe(options)["rows"]
    found = {(r["method"], r["level"]): r["accuracy"] for r in rows}
    checkpointed, _ = checkpoint.restore_part(str(tmp_path / "run"), {"params/method": None})
    own = checkpointed["params/method"]
    spaces = probe.Spaces.open(str(tmp_path / "run"))
    features = spaces.features(spaces.batches("test"))[options.layer]
    z = features.h
    listed = data.load_pairs(made.data, "test", data.load(made.data, "test"))
    listed = listed.by_respect[respects[-1] if respects else ""]
    own = own[respects[-1]] if respects else own
    a, b = z[listed.rows.T]
    scores = -np.abs(a - b).sum(1)
    level = levels[-1]
    assert found["scorer/spearman", level] == pytest.approx(
        spearman(scores, listed.similarity), abs=1e-5
    )
    logits = np.exp(own["calibration"]["slope"]) * scores + own["calibration"]["offset"]
    told = float(np.mean((np.asarray(logits) > 0) == (listed.similarity > 0.5)))
    assert found["scorer/accuracy", level] == pytest.approx(told, abs=1e-5)
    assert ("scorer/spearman", "all") in found or respects
    ranked = {
        level: value for (method, level), value in found.items() if method == "scorer/recall@1"
    }
    # Of one respect of several the levels are not.
    (by_label,) = [name for name in ranked if not name.startswith("pairs")] or [None]
    assert (by_label is None) == bool(respects)
    if by_label:
        every = -np.abs(z[:, None] - z).sum(2)
        np.fill_diagonal(every, -np.inf)
        same = (features.labels[:, None] == features.labels).all(2)
        np.fill_diagonal(same, False)
        hits = same[np.arange(len(z)), every.argmax(1)][same.any(1)]
        assert ranked[by_label] == pytest.approx(hits.mean(), abs=1e-6)

    table("train.csv", "train", 50)
    with pytest.raises(train.RunError, match="content_id"):
        train.train(made, str(tmp_path / "run"))

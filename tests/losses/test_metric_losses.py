"""Losses of metric learning against loops over pairs and triplets, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import metric_oracle as oracle
import numpy as np
import pair_oracles
import pytest

from jaxcl import losses
from jaxcl.losses import anchors, metric, mining, proxies, triplets
from jaxcl.losses.distances import Distance
from jaxcl.methods.metric_losses import LOSSES

GOLDEN = pair_oracles.sines(6, 8, 0.7)
PAIRS = np.array([0, 0, 1, 1, 2, 2])
RNG = np.random.default_rng(0)
# Three of a class, a class of one, an unknown label, and classes of two.
Z = RNG.normal(size=(10, 4))
LABELS = np.array([0, 0, 1, 0, 2, 1, -1, 3, 2, 0])
FURTHER = (RNG.normal(size=(5, 4)), np.array([0, 3, 1, -1, 0]), np.array([1, 1, 0, 1, 1], bool))
PROXIES = RNG.normal(size=(5, 4))
BETA = np.linspace(0.9, 1.3, 10)
# Rows 0 and 1 are of one image, and so are 4 and 8; 2 and 6 are of one whose label is not always known.
IMAGES = np.array([7, 7, 2, 3, 4, 5, 2, 0, 4, 9])
REFERENCE = anchors.Reference(*(jnp.asarray(x) for x in FURTHER))


def case(name, ours, theirs, **world):
    """A loss of z, and what it is by loops; z is the reference's too where one is given."""
    return name, ours, lambda z: theirs(oracle.World(z, LABELS, **world))


def of(function, *args, **keywords):
    return lambda z: function(z, LABELS, *args, **keywords)


TRIPLETS = [
    case(
        f"triplet {mining} {reduction}",
        of(triplets.triplet, 0.5, mining, reduction),
        lambda w, m=mining, r=reduction: oracle.triplet(w, 0.5, m, r),
    )
    for mining, reduction in (
        ("all", "nonzero"),
        ("all", "mean"),
        ("hard", "nonzero"),
        ("semihard", "mean"),
        ("violating", "mean"),
        ("closest_semihard", "nonzero"),
        ("facenet", "mean"),
        ("batch_hard", "nonzero"),
        ("batch_hard", "mean"),
        ("easy_positive", "mean"),
    )
] + [
    case(
        "triplet smooth easy swap l1",
        of(triplets.triplet, 0.5, "easy", smooth=True, swap=True, distance="l1"),
        lambda w: oracle.triplet(w, 0.5, "easy", smooth=True, swap=True),
        distance="l1",
    ),
    case(
        "triplet swap unnormalised",
        of(triplets.triplet, 0.5, swap=True, distance="squared_l2", normalized=False),
        lambda w: oracle.triplet(w, 0.5, swap=True),
        distance="squared_l2",
        normalized=False,
    ),
    case(
        "triplet batch-hard swap unnormalised",
        of(triplets.triplet, 0.5, "batch_hard", swap=True, normalized=False),
        lambda w: oracle.triplet(w, 0.5, "batch_hard", swap=True),
        normalized=False,
    ),
    case(
        "triplet reference",
        of(triplets.triplet, 0.5, reference=REFERENCE),
        lambda w: oracle.triplet(w, 0.5),
        reference=FURTHER,
    ),
    case(
        "triplet batch-hard reference cosine",
        of(triplets.triplet, 0.5, "batch_hard", reference=REFERENCE, distance="cosine"),
        lambda w: oracle.triplet(w, 0.5, "batch_hard"),
        reference=FURTHER,
        distance="cosine",
    ),
    case(
        "margin",
        of(triplets.margin_loss, 0.2, 1.1),
        lambda w: oracle.margin_loss(w, 0.2, 1.1),
    ),
    case(
        "margin of borders mean nu",
        of(triplets.margin_loss, 0.3, BETA, "semihard", "mean", nu=0.5),
        lambda w: oracle.margin_loss(w, 0.3, BETA, "semihard", "mean", nu=0.5),
    ),
    case(
        "margin batch-hard",
        of(triplets.margin_loss, 0.3, BETA, "batch_hard"),
        lambda w: oracle.margin_loss(w, 0.3, BETA, "batch_hard"),
    ),
    *(
        case(
            f"triplet {mining} {measure}",
            of(triplets.triplet, 0.5, mining, swap=True, distance=Distance(measure, 3.0)),
            lambda w, m=mining: oracle.triplet(w, 0.5, m, swap=True),
            distance=measure,
        )
        for mining in ("all", "batch_hard")
        for measure in ("lp", "snr")
    ),
    *(
        case(
            f"{name} {mining}",
            of(getattr(triplets, name), 0.5, mining, reference=REFERENCE),
            lambda w, n=name, m=mining: getattr(oracle, n)(w, 0.5, m),
            reference=FURTHER,
        )
        for name in ("nt_logistic", "nt_xent_pairs")
        for mining in ("all", "semihard")
    ),
]

MININGS = (
    "all",
    "hard",
    "semihard",
    "easy",
    "pair_margin",
    "multi_similarity",
    "batch_hard",
    "easy_positive",
)
PAIR_LOSSES = [
    *(
        case(
            f"margin_contrastive {mining} {reduction}",
            of(
                metric.margin_contrastive, 1.0, 1.4, mining=mining, reduction=reduction,
                mining_margins=(1.1, 1.3), epsilon=0.15,
            ),
            lambda w, m=mining, r=reduction: oracle.margin_contrastive(
                w, 1.0, 1.4, m, r, (1.1, 1.3) if m == "pair_margin" else None, 0.15
            ),
        )
        for mining in MININGS
        for reduction in (("nonzero", "mean") if mining in ("all", "semihard") else ("mean",))
    ),
    *(
        case(
            f"hadsell {mining}",
            of(metric.hadsell, 1.4, mining=mining, mining_margins=(0.8, 1.3), epsilon=0.15),
            lambda w, m=mining: oracle.hadsell(
                w, 1.4, m, (0.8, 1.3) if m == "pair_margin" else None, 0.15
            ),
        )
        for mining in MININGS
        if mining not in ("hard", "all")  # nothing is nearer than 0
    ),
    *(
        case(
            f"{name} {measure}",
            of(getattr(metric, name), *args, distance=Distance(measure, 3.0)),
            lambda w, n=name, a=args: getattr(oracle, n)(w, *a),
            distance=measure,
        )
        for name, args in (
            ("margin_contrastive", (0.3, 2.5)),
            ("hadsell", (2.0,)),
            ("lifted_structure", (0.1, 1.0)),
        )
        for measure in ("lp", "snr")
    ),
    case(
        "margin_contrastive reference",
        of(metric.margin_contrastive, 0.4, 0.9, reference=REFERENCE, distance="cosine"),
        lambda w: oracle.margin_contrastive(w, 0.4, 0.9),
        reference=FURTHER,
        distance="cosine",
    ),
    case("hadsell", of(metric.hadsell, 1.3), lambda w: oracle.hadsell(w, 1.3)),
    case(
        "lifted",
        of(metric.lifted_structure, 0.1, 1.0, reference=REFERENCE),
        lambda w: oracle.lifted_structure(w, 0.1, 1.0),
        reference=FURTHER,
    ),
    case(
        "circle",
        of(metric.circle, 0.4, 8.0, reference=REFERENCE),
        # The weights have no gradient: they stay those of Z.
        lambda w: oracle.circle(w, 0.4, 8.0, oracle.World(Z, LABELS, FURTHER).s),
        reference=FURTHER,
    ),
    case(
        "fast_ap",
        of(metric.fast_ap, 6, reference=REFERENCE),
        lambda w: oracle.fast_ap(w, 6),
        reference=FURTHER,
    ),
    *(
        case(
            f"multi_similarity {mining}",
            of(metric.multi_similarity, 2.0, 10.0, 0.4, mining, reference=REFERENCE, impl=impl),
            lambda w, m=mining: oracle.multi_similarity(w, 2.0, 10.0, 0.4, m),
            reference=FURTHER,
        )
        for mining, impl in (("all", "auto"), ("multi_similarity", "tiled"))
    ),
    case(
        "nca",
        of(metric.nca, 1.5, reference=REFERENCE),
        lambda w: oracle.nca(w, 1.5),
        reference=FURTHER,
    ),
    (
        "n_pairs",
        lambda z: metric.n_pairs(z, LABELS, 0.02),
        lambda z: oracle.n_pairs(z, LABELS, 0.02),
    ),
]  # fmt: skip


def values_and_gradients(cases):
    """{name: (value, gradient)} of all cases, compiled as one program."""

    @jax.jit
    def every(z):
        return {name: jax.value_and_grad(ours)(z) for name, ours, _ in cases}

    return every(jnp.asarray(Z, jnp.float32))


def check(cases):
    assert len({name for name, *_ in cases}) == len(cases)
    found = values_and_gradients(cases)
    for name, _, theirs in cases:
        value, gradient = found[name]
        expected, wanted = theirs(Z), oracle.gradient(theirs, Z)
        np.testing.assert_allclose(value, expected, rtol=2e-5, err_msg=name)
        assert np.linalg.norm(gradient - wanted) <= 1e-4 * np.linalg.norm(wanted) + 1e-7, name
    costs = np.array([value for value, _ in found.values()])
    assert np.mean(costs > 0) > 0.9


SAME_IMAGES = [
    case(
        f"{name} images",
        of(function, *args, images=IMAGES, **keywords),
        lambda w, n=name, a=args: getattr(oracle, n)(w, *a),
        images=IMAGES,
        **({"reference": FURTHER} if "reference" in keywords else {}),
    )
    for name, function, args, keywords in (
        ("triplet", triplets.triplet, (0.5, "all"), {"reference": REFERENCE}),
        ("triplet", triplets.triplet, (0.5, "batch_hard"), {}),
        ("margin_loss", triplets.margin_loss, (0.3, 1.1), {}),
        ("nt_logistic", triplets.nt_logistic, (0.5,), {}),
        ("nt_xent_pairs", triplets.nt_xent_pairs, (0.5,), {}),
        ("margin_contrastive", metric.margin_contrastive, (0.1, 1.4), {}),
        ("hadsell", metric.hadsell, (1.3,), {}),
        ("lifted_structure", metric.lifted_structure, (0.1, 1.0), {}),
        ("fast_ap", metric.fast_ap, (6,), {}),
        ("multi_similarity", metric.multi_similarity, (2.0, 10.0, 0.4), {"reference": REFERENCE}),
        ("nca", metric.nca, (1.5,), {}),
    )
]  # fmt: skip
SAME_IMAGES[1] = ("triplet batch-hard images", *SAME_IMAGES[1][1:])
SAME_IMAGES += [
    case(
        "circle images",
        of(metric.circle, 0.4, 8.0, images=IMAGES),
        lambda w: oracle.circle(w, 0.4, 8.0, oracle.World(Z, LABELS).s),
        images=IMAGES,
    ),
    (
        "n_pairs images",
        lambda z: metric.n_pairs(z, LABELS, 0.02, images=IMAGES),
        lambda z: oracle.n_pairs(z, LABELS, 0.02, IMAGES),
    ),
]
SOME_IMAGES = ("triplet batch-hard images", "margin_contrastive images", "multi_similarity images")

QUICK = (
    "triplet all nonzero",
    "triplet closest_semihard nonzero",
    "triplet batch_hard nonzero",
    "triplet smooth easy swap l1",
    "margin of borders mean nu",
    "nt_xent_pairs semihard",
    "margin_contrastive multi_similarity mean",
    "margin_contrastive pair_margin mean",
    "margin_contrastive reference",
    "hadsell pair_margin",
    "hadsell snr",
    "lifted",
    "circle",
    "fast_ap",
    "multi_similarity multi_similarity",
    "nca",
    "n_pairs",
)
"""A way through every part of the code; the other cases take as long again."""


def test_losses_equal_loops():
    quick = [case for case in TRIPLETS + PAIR_LOSSES if case[0] in QUICK]
    assert len(quick) == len(QUICK)
    check(quick)


def test_rows_of_one_image_are_no_pair():
    check([case for case in SAME_IMAGES if case[0] in SOME_IMAGES])
    # The images do change all of these losses.
    for (_, _, with_images), (_, _, without) in (
        (SAME_IMAGES[1], case("", None, lambda w: oracle.triplet(w, 0.5, "batch_hard"))),
        (SAME_IMAGES[5], case("", None, lambda w: oracle.margin_contrastive(w, 0.1, 1.4))),
    ):
        assert abs(with_images(Z) - without(Z)) > 1e-3


@pytest.mark.slow
def test_more_losses_equal_loops():
    check([case for case in TRIPLETS + PAIR_LOSSES if case[0] not in QUICK])
    check([case for case in SAME_IMAGES if case[0] not in SOME_IMAGES])


def test_what_is_not_known_changes_nothing():
    """Rows and keys of unknown label could as well not be there."""
    known = LABELS >= 0

    @jax.jit
    def every(z):
        kept = anchors.Reference(z[:5], jnp.array([0, 3, -1, 1, 0]))
        left = anchors.Reference(z[:5][jnp.array([0, 1, 3, 4])], jnp.array([0, 3, 1, 0]))
        return {
            name: (
                jax.value_and_grad(lambda z, f=loss: f(z, LABELS, reference=kept))(z),
                jax.value_and_grad(lambda z, f=loss: f(z[known], LABELS[known], reference=left))(z),
            )
            for name, loss in (
                (
                    "margin_contrastive",
                    functools.partial(metric.margin_contrastive, reduction="mean"),
                ),
                ("multi_similarity", metric.multi_similarity),
                ("nt_xent_pairs", triplets.nt_xent_pairs),
            )
        }

    for name, (all_rows, known_rows) in every(jnp.asarray(Z, jnp.float32)).items():
        np.testing.assert_allclose(all_rows[0], known_rows[0], rtol=2e-6, err_msg=name)
        np.testing.assert_allclose(all_rows[1], known_rows[1], rtol=2e-5, atol=1e-6, err_msg=name)
        assert not np.any(all_rows[1][~known])
        assert all_rows[0] > 0


def test_anchors_that_count_are_counted():
    """Those that have what the loss needs, by loops; without a positive, none."""

    def counts(z, labels):
        against = {
            distance: anchors.sides("test", z, labels, None, distance, True)
            for distance in ("l2", "dot", "squared_l2")
        }
        rows = metric.Rows.of("test", z, labels, None)
        outcomes = {
            "lifted": metric.lifted(against["l2"], 0.0, 1.0),
            "circle": metric.circles(against["dot"], 0.4, 8.0),
            "fast_ap": metric.average_precision(against["squared_l2"], 10),
            "multi_similarity": metric.mined_similarity(rows, 2.0, 50.0, 0.5, "all", 0.1),
            "nca": metric.neighbours(rows, 1.0),
            "n_pairs": metric.pairs_of_classes(z, labels, 0.0),
        }
        return {name: found["mined_anchors"] for name, (_, found) in outcomes.items()}

    run = jax.jit(counts)
    z, world = jnp.asarray(Z, jnp.float32), oracle.World(Z, LABELS)
    pulled = np.mean([len(world.positives(i)) > 0 for i in range(10)])
    found = run(z, LABELS)
    classes = [x for x in set(LABELS.tolist()) if x >= 0 and list(LABELS).count(x) > 1]
    expected = {**dict.fromkeys(found, pulled), "n_pairs": len(classes) / 10}
    assert 0 < pulled < 1
    for name, share in found.items():
        np.testing.assert_allclose(share, expected[name], rtol=1e-6, err_msg=name)
    assert not any(run(z, np.arange(10)).values())
    # One class: nothing to be pushed from.
    pushed = run(z, np.zeros(10, int))
    assert pushed["lifted"] == pushed["circle"] == pushed["multi_similarity"] == 0
    assert pushed["nca"] == pushed["fast_ap"] == 1


@pytest.mark.parametrize(
    ("loss", "by_loops"),
    [
        (functools.partial(proxies.proxy_nca, scale=2.0), lambda *a: oracle.proxy_nca(*a, 2.0, "all")),
        (
            functools.partial(proxies.proxy_nca, scale=2.0, denominator="others", impl="tiled"),
            lambda *a: oracle.proxy_nca(*a, 2.0, "others"),
        ),
        (functools.partial(proxies.proxy_anchor, alpha=6.0), lambda *a: oracle.proxy_anchor(*a, 0.1, 6.0)),
        (functools.partial(proxies.arcface, margin=60.0, scale=4.0), lambda *a: oracle.arcface(*a, 60.0, 4.0)),
    ],
    ids=["proxy_nca", "proxy_nca, others", "proxy_anchor", "arcface"],
)  # fmt: skip
def test_proxies_equal_loops(loss, by_loops):
    """An unknown label is left out; both rows and proxies get a gradient."""
    run = jax.jit(jax.value_and_grad(lambda z, p: loss(z, LABELS, p), argnums=(0, 1)))
    value, (to_rows, to_proxies) = run(
        jnp.asarray(Z, jnp.float32), jnp.asarray(PROXIES, jnp.float32)
    )
    np.testing.assert_allclose(value, by_loops(Z, LABELS, PROXIES), rtol=1e-5)
    wanted = oracle.gradient(lambda z: by_loops(z, LABELS, PROXIES), Z)
    assert np.linalg.norm(to_rows - wanted) <= 1e-4 * np.linalg.norm(wanted)
    wanted = oracle.gradient(lambda p: by_loops(Z, LABELS, p), PROXIES)
    assert np.linalg.norm(to_proxies - wanted) <= 1e-4 * np.linalg.norm(wanted)


@pytest.mark.parametrize("name", ["proxy_nca", "proxy_anchor", "arcface"])
def test_a_label_beyond_the_proxies_is_refused_or_nan(name):
    z, loss, own = jnp.asarray(Z, jnp.float32), getattr(losses, name), jnp.asarray(PROXIES[:4])
    for beyond in (np.where(LABELS == 3, 4, LABELS), LABELS + 50):
        with pytest.raises(
            ValueError, match=rf"{name}: labels must be below 4, .* got {beyond.max()}"
        ):
            loss(z, beyond, own)
        traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 2)))
        value, gradients = traced(z, jnp.asarray(beyond), own)
        assert np.isnan(value)
        assert all(np.isnan(x).any() for x in gradients)
        value, gradients = traced(z, jnp.asarray(LABELS), own)
        assert all(np.all(np.isfinite(x)) for x in (value, *gradients))


def test_golden():
    """Counts 16, 7 and 1 of 24 triplets, and the values that go with them."""

    @jax.jit
    def every(z):
        return {
            "counts": triplets.triplet_counts(z, PAIRS, 0.2),
            "mean": triplets.triplet(z, PAIRS, 0.2, reduction="mean"),
            "nonzero": triplets.triplet(z, PAIRS, 0.2),
            "contrastive": metric.margin_contrastive(z, PAIRS),
            "margins": metric.margin_contrastive(z, PAIRS, 1.45, 1.5),
            "positive part": metric.margin_contrastive(z, PAIRS, 1.45, 0.0),
            "multi_similarity": metric.multi_similarity(z, PAIRS),
        }

    found = every(jnp.asarray(GOLDEN, jnp.float32))
    assert found.pop("counts") == {"triplets": 24, "hard": 16, "semihard": 7, "easy": 1}
    for name, expected in {
        "mean": 0.281772457443001,
        "nonzero": 0.2940234338535663,
        "contrastive": 1.4500960064437767,
        "margins": 0.06828991029894105 + 0.1466375532590369,
        "positive part": 0.06828991029894105,
        "multi_similarity": 0.7019797480784996,
    }.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, err_msg=name)


def frozen(world, chosen, price):
    """A loss of the rows in which the mined (anchor, positive, negative) or pairs are those given, whatever the rows are."""
    rows = [np.array(x) for x in zip(*chosen, strict=True)]

    def loss(z):
        z = z / jnp.linalg.norm(z, axis=1, keepdims=True)

        def d(i, j):
            square = jnp.sum((z[rows[i]] - z[rows[j]]) ** 2, axis=1)
            return jnp.sqrt(square)

        return jnp.mean(price(d))

    return loss


def drawn_triplets(key, features):
    """The triplets that are drawn by a key: the same draws as those of a loss, from distances that are looked at alone."""
    world, out = oracle.World(Z, LABELS), []
    d = jnp.asarray(world.d, jnp.float32)
    for a in world.anchors:
        for p in world.positives(a):
            negative = np.zeros((1, 10), bool)
            negative[0, world.negatives(a)] = True
            own = jax.random.fold_in(jax.random.fold_in(key, a), p)
            weights = mining.distance_weights(d[a : a + 1], jnp.asarray(negative), features)
            found = np.flatnonzero(mining.draw(own[None], weights)[0])
            out += [(a, p, int(n)) for n in found]
    return out


def test_mined_losses_have_the_gradient_of_what_was_mined():
    """Of the same triplets and pairs, listed once and kept: nothing flows through the choice, or through the weights of draws."""
    key, z = jax.random.key(5), jnp.asarray(Z, jnp.float32)
    world = oracle.World(Z, LABELS)
    cases = {}
    for name in mining.TRIPLET_MININGS:
        drawn = name == "distance_weighted"
        chosen = drawn_triplets(key, 4) if drawn else oracle.mined(world, name, 0.5)
        assert chosen, name
        own = {"smooth": True, "key": key if drawn else None}
        cases[name] = (
            functools.partial(triplets.triplet, margin=0.5, mining=name, reduction="mean", **own),
            frozen(world, chosen, lambda d: jax.nn.softplus(d(0, 1) - d(0, 2) + 0.5)),
        )
    for name in mining.PAIR_MININGS:
        near, far = oracle.mined_pairs(world, name, 1.0, 1.4)
        near_only, far_only = ({x: x for x in pairs} for pairs in (near, far))
        pull = frozen(world, list(near_only), lambda d: jax.nn.relu(d(0, 1) - 1.0))
        push = frozen(world, list(far_only), lambda d: jax.nn.relu(1.4 - d(0, 1)))
        cases[f"pairs {name}"] = (
            functools.partial(
                metric.margin_contrastive, pos_margin=1.0, neg_margin=1.4, mining=name,
                reduction="mean", mining_margins=(1.0, 1.4),
            ),
            lambda z, pull=pull, push=push: pull(z) + push(z),
        )  # fmt: skip

    @jax.jit
    def every(z):
        return {
            name: (
                jax.value_and_grad(lambda z, f=mined: f(z, LABELS))(z),
                jax.value_and_grad(kept)(z),
            )
            for name, (mined, kept) in cases.items()
        }

    for name, (mined, kept) in every(z).items():
        np.testing.assert_allclose(mined[0], kept[0], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(mined[1], kept[1], rtol=1e-4, atol=1e-6, err_msg=name)
        assert np.any(kept[1])


def test_draws_by_distance_are_those_of_the_density():
    """The mean of the loss over many keys is the expectation by 1 / q(d), in float64 by loops, within four standard errors."""
    count, margin = 3000, 0.5
    rng = np.random.default_rng(3)
    z = rng.normal(size=(12, 8)) + 0.8
    labels = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0, -1])
    world = oracle.World(z, labels)
    per_pair = []
    for a in world.anchors:
        for p in world.positives(a):
            far = np.array([world.d[a, n] for n in world.negatives(a)])
            far = far[far < 1.4]
            x = np.maximum(far, 0.5)
            weight = 1 / (x**6 * (1 - x**2 / 4) ** 2.5)
            cost = np.maximum(world.d[a, p] - far + margin, 0)
            if len(far):
                per_pair.append((weight @ cost / weight.sum(), cost.mean()))
    expected, even = np.mean(per_pair, axis=0)
    rows = jnp.asarray(z, jnp.float32)

    @jax.jit
    def losses_of(keys):
        def one(key):
            settings = {"mining": "distance_weighted", "reduction": "mean", "key": key}
            return triplets.triplet(rows, labels, margin, **settings)

        return jax.lax.map(one, keys)

    found = np.asarray(losses_of(jax.random.split(jax.random.key(0), count)), np.float64)
    error = found.std() / np.sqrt(count)
    assert abs(found.mean() - expected) < 4 * error
    assert abs(expected - even) > 12 * error  # evenly drawn negatives would be told apart


LABEL_LOSSES = {
    **{f"triplet {m}": functools.partial(triplets.triplet, mining=m) for m in ("all", "semihard", "batch_hard", "facenet")},
    "triplet drawn": functools.partial(triplets.triplet, mining="distance_weighted", key=jax.random.key(0)),
    "triplet swap": functools.partial(triplets.triplet, swap=True),
    "margin": triplets.margin_loss,
    "nt_logistic": triplets.nt_logistic,
    "nt_xent": functools.partial(triplets.nt_xent_pairs, mining="semihard"),
    "margin_contrastive": functools.partial(metric.margin_contrastive, mining="multi_similarity"),
    "hadsell": metric.hadsell,
    "lifted": metric.lifted_structure,
    "circle": metric.circle,
    "fast_ap": metric.fast_ap,
    "multi_similarity": functools.partial(metric.multi_similarity, mining="multi_similarity"),
    "nca": metric.nca,
    "n_pairs": metric.n_pairs,
    "proxy_nca": lambda z, y: proxies.proxy_nca(z, y, PROXIES.astype(np.float32)),
    # A single proxy has no others; labels beyond it would be an error.
    "proxy_nca others": lambda z, y: proxies.proxy_nca(z, jnp.minimum(y, 0), PROXIES.astype(np.float32)[:1], denominator="others"),
    "proxy_anchor": lambda z, y: proxies.proxy_anchor(z, y, PROXIES.astype(np.float32)),
    "arcface": lambda z, y: proxies.arcface(z, y, PROXIES.astype(np.float32)),
}  # fmt: skip


COMMON = (
    "triplet all",
    "triplet batch_hard",
    "margin_contrastive",
    "lifted",
    "fast_ap",
    "multi_similarity",
    "nca",
    "arcface",
)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(COMMON, id="common"),
        pytest.param(set(LABEL_LOSSES) - set(COMMON), id="others", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_ever_nan(names):
    """One class, no classes, unknown labels, duplicates, zero rows, rows equal to a proxy: finite, and 0 where there is nothing."""
    z = jnp.asarray(Z[:6], jnp.float32)
    equal, some_zero = jnp.ones((6, 4)), z.at[:3].set(0)
    own_proxy = jnp.asarray(PROXIES[:1].repeat(6, axis=0), jnp.float32)

    @jax.jit
    def every(z, labels):
        return {name: jax.value_and_grad(LABEL_LOSSES[name])(z, labels) for name in sorted(names)}

    one, unknown = np.zeros(6, int), np.full(6, -1)
    for rows in (z, equal, some_zero, own_proxy):
        for labels in (one, np.array([0, 0, 1, 1, 2, 3]), unknown):
            for name, (value, gradient) in every(rows, labels).items():
                assert np.isfinite(value), name
                assert np.all(np.isfinite(gradient)), name
    # Without positives or without negatives there are no triplets, and nothing to differentiate.
    for labels in (one, unknown):
        for name, (value, gradient) in every(z, labels).items():
            if (
                name.startswith(("triplet", "margin", "nt_", "circle"))
                and name != "margin_contrastive"
            ):
                assert value == 0, name
                assert not np.any(gradient), name
    for name, (value, gradient) in every(z, unknown).items():
        assert value == 0, name
        assert not np.any(gradient), name


@pytest.mark.parametrize("wide", [3_000_000_000, 2**40 + 7, -(2**33)])
def test_wide_labels_do_not_wrap_around(wide):
    labels = np.array([7, 7, wide, wide])
    with pytest.raises(ValueError, match=r"triplet: labels must fit 32 bits"):
        triplets.triplet(jnp.asarray(Z[:4], jnp.float32), labels)
    with pytest.raises(ValueError, match=r"triplet: images must fit 32 bits"):
        triplets.triplet(jnp.asarray(Z[:4], jnp.float32), PAIRS[:4], images=labels)


def test_constant_embeddings_cost_the_margin():
    @jax.jit
    def every(z):
        minings = ("all", "batch_hard", "semihard")
        costs = [triplets.triplet(z, PAIRS, 0.3, mining) for mining in minings]
        return [*costs, triplets.triplet(z, PAIRS, 0.3, smooth=True)]

    expected = [0.3, 0.3, 0, np.log1p(np.exp(0.3))]
    np.testing.assert_allclose(every(jnp.ones((6, 4))), expected, rtol=1e-6)


def test_margins_end_the_gradient():
    """None for positives nearer than their margin, none for negatives beyond theirs."""
    z = jnp.asarray(GOLDEN, jnp.float32)
    d = oracle.World(GOLDEN, PAIRS).d
    of_margins = jax.jit(
        jax.grad(lambda z, *margins: metric.margin_contrastive(z, PAIRS, *margins)),
        static_argnums=(1, 2),
    )
    for positive in (False, True):
        margins = (1.45, 0.0) if positive else (4.0, 1.3)
        gradient = of_margins(z, *margins)
        same = PAIRS[:, None] == PAIRS[None, :]
        np.fill_diagonal(same, not positive)
        costs = (same & (d > 1.45)) if positive else (~same & (d < 1.3))
        assert 0 < costs.any(1).sum() < 6
        np.testing.assert_array_equal(np.any(gradient != 0, axis=1), costs.any(1))


FREE = {
    ("lifted_structure", "pos_margin"),
    ("lifted_structure", "neg_margin"),
    ("circle", "margin"),
    ("margin", "beta"),
    ("multi_similarity", "base"),
}
NOT_LIMITED_HERE = ("p", "mining_pos_margin", "mining_neg_margin")


@pytest.mark.parametrize(
    ("name", "setting", "wrong"),
    [
        (name, setting, wrong)
        for name, spec in LOSSES.items()
        for setting, usual in spec.settings.items()
        if isinstance(usual, float | int) and not isinstance(usual, bool)
        if (name, setting) not in FREE and setting not in NOT_LIMITED_HERE
        for wrong in (-1, float("nan"), float("inf"))
    ],
)
def test_numbers_that_cannot_be_are_refused(name, setting, wrong):
    function = {"margin": "margin_loss", "nt_xent": "nt_xent_pairs"}.get(name, name)
    loss = getattr(losses, function)
    own = (PROXIES,) if LOSSES[name].proxies else ()
    with pytest.raises(ValueError, match=rf"{setting} must be a .*number.*, got {wrong}"):
        loss(jnp.asarray(Z), LABELS, *own, **{setting: wrong})


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("multi_similarity", "alpha"), ("multi_similarity", "beta"), ("nca", "scale"), ("circle", "scale"),
        ("fast_ap", "bins"), ("hadsell", "margin"), ("proxy_anchor", "alpha"), ("proxy_nca", "scale"), ("arcface", "scale"),
        ("nt_logistic", "temperature"),
    ],
)  # fmt: skip
def test_what_divides_or_multiplies_all_is_not_0(name, setting):
    own = (PROXIES,) if LOSSES[name].proxies else ()
    with pytest.raises(ValueError, match=rf"{setting} must be a .*, got 0"):
        getattr(losses, name)(jnp.asarray(Z), LABELS, *own, **{setting: 0})


def test_margins_of_products_may_be_below_0_and_margins_may_be_0():
    z = jnp.asarray(Z, jnp.float32)
    got = metric.margin_contrastive(z, LABELS, -0.9, -0.1, distance="dot")
    wanted = oracle.margin_contrastive(oracle.World(Z, LABELS, distance="dot"), -0.9, -0.1)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    np.testing.assert_allclose(
        triplets.triplet(z, LABELS, 0.0), oracle.triplet(oracle.World(Z, LABELS), 0.0), rtol=1e-5
    )


def test_labels_may_be_a_list():
    z = jnp.asarray(Z, jnp.float32)
    for run in (triplets.triplet, metric.nca, metric.n_pairs, metric.circle):
        assert run(z, LABELS.tolist()) == run(z, LABELS)
    own = proxies.arcface(z, LABELS.tolist(), jnp.asarray(PROXIES, jnp.float32))
    assert own == proxies.arcface(z, LABELS, jnp.asarray(PROXIES, jnp.float32))


def test_what_does_not_fit_is_named():
    z, labels = jnp.asarray(Z, jnp.float32), LABELS
    for message, run in (
        (r'triplet: mining must be one of "all", .*, got .semi.', lambda: triplets.triplet(z, labels, mining="semi")),
        (r'reduction must be one of "nonzero", "mean"', lambda: triplets.triplet(z, labels, reduction="sum")),
        (r"draws negatives: give a key=", lambda: triplets.triplet(z, labels, mining="distance_weighted")),
        (
            r'expected distance="l2", got .cosine.',
            lambda: triplets.triplet(z, labels, mining="distance_weighted", distance="cosine", key=jax.random.key(0)),
        ),
        (
            r"distances of points on a sphere: expected normalized=True",
            lambda: triplets.margin_loss(5 * z, labels, mining="distance_weighted", normalized=False, key=jax.random.key(0)),
        ),
        (r"labels must be int\[10\]", lambda: metric.nca(z, labels[:9])),
        (r"labels must be int\[10\]", lambda: metric.hadsell(z, labels.astype(float))),
        (r"z must be float\[rows, features\]", lambda: metric.circle(z[None], labels)),
        (r"proxies must be float\[classes, 4\]", lambda: proxies.arcface(z, labels, jnp.ones((3, 5)))),
        (r"distance=.l3.: expected one of", lambda: metric.hadsell(z, labels, distance="l3")),
        (r"margin_loss: beta must be a number or float\[10\], .*got float32\[1\]", lambda: triplets.margin_loss(z, labels, beta=[3])),
        (r"beta must be a number or float\[10\]", lambda: triplets.margin_loss(z, labels, beta=np.ones((10, 1)))),
        (
            r"reference must be z float\[K, 4\]",
            lambda: metric.nca(z, labels, reference=anchors.Reference(z[:, :3], labels)),
        ),
        (
            r"reference must be z float\[K, 4\], .*; got int32\[10, 4\]",
            lambda: triplets.triplet(z, labels, reference=anchors.Reference(z.astype(int), labels)),
        ),
        (
            r"reference must be .* valid bool\[K\]; .* and float32\[10\]",
            lambda: metric.nca(z, labels, reference=anchors.Reference(z, labels, jnp.ones(10))),
        ),
        (r"nca: images must be int\[10\]", lambda: metric.nca(z, labels, images=np.arange(9))),
        (r"triplet: images must be int\[10\]", lambda: triplets.triplet(z, labels, images=np.ones(10))),
        (r"temperature must be a positive number", lambda: triplets.nt_logistic(z, labels, 0.0)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            run()

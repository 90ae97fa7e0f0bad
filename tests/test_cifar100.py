"""All labels of CIFAR-100: the config on a prepared TFDS data set of the published form, in miniature and made without TensorFlow."""

import pathlib

import numpy as np
import prepared
import pytest
import tiny_network

from jaxcl import config as config_lib
from jaxcl import data, models, train

ROOT = pathlib.Path(__file__).parents[1]
COARSE = [f"superclass {i}" for i in range(20)]
FINE = [f"class {i}" for i in range(100)]
CLASSES, EACH = 12, 6


def coarse_of(fine):
    """The superclass of a class, two of which have the same; it does not rise with the class."""
    return 7 * (fine % 6) % 20


def write_cifar100(root):
    """12 of the classes, 6 images of each to train on and 2 to test."""

    def examples(split, each):
        for i in range(CLASSES * each):
            fine = i % CLASSES
            rng = np.random.default_rng([i, split == "test"])
            image = rng.integers(0, 60, (32, 32, 3), np.uint8) + np.uint8(15 * fine)
            yield image, {"coarse_label": coarse_of(fine), "label": fine}

    splits = {split: list(examples(split, each)) for split, each in (("train", EACH), ("test", 2))}
    return prepared.write(
        root, "cifar100", "3.0.2", splits, {"coarse_label": COARSE, "label": FINE}
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_cifar100(tmp_path_factory.mktemp("tfds"))


def get_config(name, directory):
    c = config_lib.load(f"{ROOT / 'configs' / name}.py:cifar100")
    c.data.path = str(directory)
    return c


@pytest.mark.parametrize("name", ["himulcone", "himulcon", "hicone"])
def test_both_labels_are_levels_of_the_tree(name, directory):
    config = config_lib.from_dict(get_config(name, directory))
    assert config.method["variant"] == name
    source = data.load(config.data, "train")
    assert source.tree.levels == ("coarse_label", "label")
    assert source.tree.names == (tuple(COARSE), tuple(FINE))
    fine = np.arange(round(0.9 * CLASSES * EACH)) % CLASSES  # a tenth is for validation
    np.testing.assert_array_equal(source.labels, np.stack([coarse_of(fine), fine], axis=1))
    assert config.for_labels(source.tree).build_method().learned_levels == ("coarse_label", "label")
    # Groups: an image, one of another superclass, of another class of its own, of its own class.
    sampler = data.make_sampler(config.data, data.by_path(source), 16)
    groups = source.labels[sampler.epoch(0)].reshape(-1, 4, 2)
    anchor, other, sibling, same = np.moveaxis(groups, 1, 0)
    assert (other[:, 0] != anchor[:, 0]).all()
    assert (sibling[:, 0] == anchor[:, 0]).all()
    assert (sibling[:, 1] != anchor[:, 1]).all()
    assert (same == anchor).all()


def test_it_trains_and_is_scored_at_both_levels(directory, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "build", tiny_network.build)
    c = get_config("himulcone", directory)
    c.update_from_flattened_dict(
        {
            "batch_size": 16,
            "steps": 2,
            "epochs": 0.0,
            "data.threads": 1,
            "model.width": 1 / 32,
            "optim.warmup_epochs": 0.0,
            "evaluation.every": 0,
            "evaluation.ks": (1, 5),
            "evaluation.linear": False,
            "evaluation.baselines": False,
            "evaluation.extra": ("retrieval",),
            "run.log_every": 1,
            "run.report": False,
            "mesh.compile_cache": "",
        }
    )
    result = train.train(config_lib.from_dict(c), str(tmp_path))
    assert result["complete"]
    assert np.isfinite(result["metrics"]["loss"])
    assert {"loss_coarse_label", "loss_label", "floored_coarse_label"} <= set(result["metrics"])
    rows = {(row["method"], row["level"]): row["queries"] for row in result["rows"]}
    assert rows["knn", "coarse_label"] == rows["knn", "label"] == 2 * CLASSES
    assert rows["retrieval/map@r", "label"] == 2 * CLASSES

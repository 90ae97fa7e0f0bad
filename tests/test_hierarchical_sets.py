"""The configs of the paper's data sets, on miniature copies of the published layouts, from a file of weights to the table."""

import itertools
import json
import pathlib

import numpy as np
import prepared
import pytest
import torchvision_names
from PIL import Image

from jaxcl import checkpoint, data, train
from jaxcl import config as config_lib
from jaxcl.data import splits
from jaxcl.models import resnet

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "himulcone.py"
KINDS = ("Denim", "Dresses", "Jackets", "Pants", "Shirts", "Shorts", "Skirts", "Sweaters")
SHRUNK = {
    "batch_size": 16,
    "steps": 1,
    "epochs": 0.0,
    "data.image_size": 24,
    "data.workers": 0,
    "data.threads": 1,
    "views.ops.crop.size": 16,
    "model.name": "resnet18",
    "model.width": 1 / 32,
    "method.projection.layers": (16, 8),
    "optim.warmup_epochs": 0.0,
    "evaluation.ks": (1, 3),
    "evaluation.linear": False,
    "evaluation.batch_size": 16,
    "run.log_every": 1,
    "run.report": False,
}


def draw(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(number).integers(0, 255, (28, 26, 3), np.uint8)
    Image.fromarray(image).save(path)


def inshop(root):
    """In each category products of two variations of two images; three to train on, and two for queries and the gallery."""
    lines = []
    for kind_number, kind in enumerate(KINDS):
        for product in range(5):
            item = f"id_{100 * kind_number + product:08}"
            for variation in (1, 2):
                for pose, status in ((1, "query"), (2, "gallery")):
                    file = f"img/WOMEN/{kind}/{item}/{variation:02}_{pose}_front.jpg"
                    lines.append(f"{file} {item} {'train' if product < 3 else status}")
                    draw(root / "Img" / file, len(lines))
    text = ["160", "image_name item_id evaluation_status", *lines]
    (root / "Eval").mkdir()
    (root / "Eval" / "list_eval_partition.txt").write_text("\n".join(text) + "\n")


def modelnet40(root):
    """In each category three models to train on and two to test, with four views."""
    for kind_number, kind in enumerate(KINDS):
        for model in range(5):
            for view in range(4):
                part = "train" if model < 3 else "test"
                number = 1000 * kind_number + 10 * model + view
                draw(root / kind / part / f"{kind}_{model:04}_{view:03}.png", number)


def inaturalist(root):
    """Two supercategories of two species."""
    names = [("Plantae", "Abies"), ("Plantae", "Acer"), ("Aves", "Ara"), ("Aves", "Anas")]
    categories = [{"id": i, "supercategory": s, "name": n} for i, (s, n) in enumerate(names)]
    for split, each in (("train", 20), ("val", 3)):
        kinds = [kind for kind in range(4) for _ in range(each)]
        images = [{"id": i, "file_name": f"{split}/{i}.jpg"} for i in range(len(kinds))]
        marks = [{"image_id": i, "category_id": kind} for i, kind in enumerate(kinds)]
        plain = {"images": images, "annotations": marks, "categories": categories}
        (root / f"{split}2017.json").write_text(json.dumps(plain))
        for image in images:
            draw(root / image["file_name"], image["id"])


def imagenet(root):
    """Images of four classes, as TFDS prepares the set, which knows its names, and is-a lines with two ancestors at depth 7."""

    def examples(count):
        rng = np.random.default_rng(count)
        classes = (0, 1, 500, 501)
        return [
            (rng.integers(0, 255, (32, 32, 3), np.uint8), {"label": classes[i % 4]})
            for i in range(count)
        ]

    parts = {"train": examples(200), "validation": examples(12)}
    numbers = list(map(str, range(1000)))
    prepared.write(root, "imagenet2012", "5.1.0", parts, {"label": numbers})
    (names,) = data.TfdsSource("imagenet2012", "train", str(root)).tree.names
    above = [f"n9{i:07}" for i in range(7)]
    lines = [f"{a} {b}" for a, b in itertools.pairwise(above)]
    lines += [f"{above[-1]} n8{number:07}" for number in range(2)]
    lines += [f"n8{number // 500:07} {name}" for number, name in enumerate(names)]
    (root / "wordnet.is_a.txt").write_text("\n".join(lines) + "\n")


def imagenet_folders(root):
    """Image files of five classes in folders: two pairs of relatives below depth 7, and a class that is itself at that depth."""
    above = [f"n9{i:07}" for i in range(7)]
    lines = [f"{a} {b}" for a, b in itertools.pairwise(above)]
    for kind in range(5):
        name = f"n0{kind:07}"
        lines.append(f"{above[-1] if kind == 4 else f'n8{kind // 2:07}'} {name}")
        for split, each in (("train", 20), ("val", 3)):
            for i in range(each):
                draw(root / split / name / f"{i}.JPEG", 100 * kind + i)
    lines += [f"{above[-1]} n8{number:07}" for number in range(2)]
    (root / "wordnet.is_a.txt").write_text("\n".join(lines) + "\n")


SETS = {
    "deepfashion": (inshop, "inshop", "--together=product"),
    "modelnet40": (modelnet40, "modelnet40", "--together=model"),
    "imagenet": (imagenet, "", ""),
    "imagenet_folders": (imagenet_folders, "", ""),
    "inaturalist": (inaturalist, "", ""),
}


@pytest.fixture(scope="module")
def arrays():
    """A residual network of one block a stage and 2 channels, with torchvision's names; "resnet18" is that here."""
    one = (1, 1, 1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.DEPTHS, 18, (one, False))
        patch.setitem(torchvision_names.BLOCKS, 18, one)
        yield torchvision_names.torch_arrays(18, 2)


@pytest.fixture(scope="module")
def shared(arrays, tmp_path_factory):
    """The file of the weights, and a place for compiled programs."""
    root = tmp_path_factory.mktemp("shared")
    np.savez(root / "resnet18.npz", **arrays)
    return root


def small(arg, root, shared):
    """The config with a small network, whose data are a miniature copy in `root`."""
    name = arg.partition(",")[0]
    write, kind, together = SETS[name]
    write(root)
    c = config_lib.load(f"{CONFIG}:{arg}")
    c.update_from_flattened_dict(SHRUNK)
    c.data.path, c.init.path = str(root), str(shared / "resnet18.npz")
    c.mesh.compile_cache = str(shared / "xla")
    if c.data.taxonomy:
        c.data.taxonomy = str(root / c.data.taxonomy)
    if c.data.split_file:
        c.data.split_file = str(root / "split.json")
        flags = [f"--data={kind}:{root}", "--by=category", together, "--test_split=test"]
        splits.main([*flags, "--val=0.3", f"--out={c.data.split_file}"])
    elif c.data.holdout:
        c.data.holdout = 0.3
    return config_lib.from_dict(c)


def objects(config, split, level):
    source = data.load(config.data, split)
    return {tuple(row) for row in source.labels[:, : source.tree.level(level) + 1].tolist()}


@pytest.mark.parametrize("name", ["deepfashion", "modelnet40"])
def test_no_object_is_in_two_splits_and_unseen_categories_are_apart(name, tmp_path, shared):
    level = SETS[name][2].partition("=")[2]
    seen = small(name, tmp_path / "seen", shared)
    divided = small(f"{name},unseen", tmp_path / "unseen", shared)
    for config in (seen, divided):
        train_, val = (objects(config, split, level) for split in ("train", "val"))
        assert train_ and val and not train_ & val  # noqa: PT018
    parts = {
        s: objects(divided, s, "category") for s in ("train", "test", "unseen_train", "unseen_test")
    }
    assert parts["train"] == parts["test"]
    assert parts["unseen_train"] == parts["unseen_test"]
    assert len(parts["train"]) == 6
    assert not parts["train"] & parts["unseen_train"]
    assert not objects(divided, "unseen_train", level) & objects(divided, "unseen_test", level)


def test_the_folders_of_imagenet_have_the_superclasses_in_every_split(tmp_path, shared):
    """Also the class that stands for itself, as it is not deeper than they are."""
    config = small("imagenet_folders", tmp_path, shared)
    names = {split: data.load(config.data, split) for split in ("train", "val", "seen", "test")}
    for source in names.values():
        assert source.tree.levels == ("depth7", "label")
        assert {source.tree.describe(label) for label in source.labels} == {
            *(f"n8{kind // 2:07}/n0{kind:07}" for kind in range(4)),
            "n00000004/n00000004",
        }
    assert len(names["train"]) + len(names["val"]) == len(names["seen"]) == 100
    assert len(names["test"]) == 15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arg", "levels"),
    [
        ("deepfashion", {"category"}),
        ("modelnet40,unseen", {"category"}),
        ("imagenet", {"depth7", "label"}),
        ("imagenet_folders", {"depth7", "label"}),
        ("inaturalist", {"supercategory", "species"}),
    ],
)
def test_a_config_trains_and_is_scored(arg, levels, tmp_path, shared, arrays):
    config = small(arg, tmp_path, shared)
    result = train.train(config, str(tmp_path / "run"))
    assert result["complete"]
    assert np.isfinite(result["metrics"]["loss"])
    rows = {(row["method"], row["level"]): row["accuracy"] for row in result["rows"]}
    assert {level for method, level in rows if method == "knn"} == levels
    assert {f"retrieval/recall@{k}" for k in (1, 10)} <= {method for method, _ in rows}
    unseen = arg.endswith(",unseen")
    assert (("unseen/knn", "category") in rows) == unseen
    assert (("unseen/retrieval/map@r", "category") in rows) == unseen
    # The frozen layers are those of the file, the others are not.
    stored = checkpoint.restore_part(tmp_path / "run", {"params/backbone": None})[0][
        "params/backbone"
    ]
    first = arrays["layer2.0.conv1.weight"].transpose(2, 3, 1, 0)
    last = arrays["layer4.0.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(stored["stage2_block1"]["conv1"]["kernel"], first)
    assert np.abs(stored["stage4_block1"]["conv1"]["kernel"] - last).max() > 1e-6

"""Data sets in their published layouts, on miniature copies that are written here."""

import dataclasses
import json
import re

import numpy as np
import pytest
from corpus import encode, picture
from scipy.io import savemat

from jaxcl.data import (
    BadExample,
    DataConfig,
    LabelTree,
    level_names,
    load,
    split_file,
    splits,
    verify,
)
from jaxcl.data.published import LAYOUTS
from jaxcl.data.relabel import relabelled
from jaxcl.data.subset import subset
from jaxcl.evaluators import Classes


def put(root, *files):
    for number, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(6 + number % 5, 7), "PNG"))


def text(root, file, *lines):
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def cub(root):
    birds = ["001.Albatross", "100.Pelican", "101.Grebe", "200.Wren"]
    images = [f"{bird}/{bird[4:]}_{i}.jpg" for bird in birds for i in (1, 2)]
    put(root / "images", *images)
    text(root, "images.txt", *(f"{i} {name}" for i, name in enumerate(images, 1)))
    classes = [int(bird[:3]) for bird in birds for _ in (1, 2)]
    text(root, "image_class_labels.txt", *(f"{i} {c}" for i, c in enumerate(classes, 1)))
    text(root, "train_test_split.txt", *(f"{i} {i % 2}" for i in range(1, 9)))
    names = {int(bird[:3]): bird for bird in birds}
    text(root, "classes.txt", *(f"{c} {names.get(c, f'{c:03}.Other')}" for c in range(1, 201)))


CUB = {
    "train": {"001.Albatross/Albatross_1.jpg": "001.Albatross", "200.Wren/Wren_1.jpg": "200.Wren"},
    "test": {"100.Pelican/Pelican_2.jpg": "100.Pelican"},
    "train_classes": {"100.Pelican/Pelican_1.jpg": "100.Pelican"},
    "test_classes": {"101.Grebe/Grebe_2.jpg": "101.Grebe"},
}


def cars(root):
    names = np.array([f"Make Model {i} 2012" for i in range(1, 197)], object)
    files = [f"car_ims/{i:06}.jpg" for i in range(1, 7)]
    put(root, *files)
    kind = [(key, object) for key in ("relative_im_path", "bbox_x1", "class", "test")]
    rows = [
        (file, 5, c, t)
        for file, c, t in zip(files, [1, 98, 99, 196, 1, 99], [0, 1] * 3, strict=True)
    ]
    savemat(root / "cars_annos.mat", {"annotations": np.array(rows, kind), "class_names": names})


CARS = {
    "train": {
        "car_ims/000001.jpg": "Make Model 1 2012",
        "car_ims/000003.jpg": "Make Model 99 2012",
    },
    "test": {"car_ims/000004.jpg": "Make Model 196 2012"},
    "train_classes": {"car_ims/000002.jpg": "Make Model 98 2012"},
    "test_classes": {"car_ims/000006.jpg": "Make Model 99 2012"},
}


def sop(root):
    rows = {
        "train": [
            "1 1 1 bicycle_final/111_0.JPG",
            "2 1 1 bicycle_final/111_1.JPG",
            "3 2 2 cabinet_final/2_0.JPG",
        ],
        "test": ["4 11319 1 bicycle_final/44_0.JPG"],
    }
    for split, lines in rows.items():
        text(root, f"Ebay_{split}.txt", "image_id class_id super_class_id path", *lines)
        put(root, *(line.split()[3] for line in lines))


SOP = {
    "train": {"bicycle_final/111_1.JPG": "bicycle/1", "cabinet_final/2_0.JPG": "cabinet/2"},
    "test": {"bicycle_final/44_0.JPG": "bicycle/11319"},
}


def inshop(root):
    rows = [
        ("img/WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
        ("img/WOMEN/Dresses/id_00000002/02_2_side.jpg", "id_00000002", "train"),
        ("img/WOMEN/Dresses/id_00000002/03_1_front.jpg", "id_00000002", "train"),
        ("img/WOMEN/Denim/id_00000090/02_1_front.jpg", "id_00000090", "query"),
        ("img/MEN/Denim/id_00000080/01_1_front.jpg", "id_00000080", "query"),
        ("img/MEN/Denim/id_00000080/01_7_additional.jpg", "id_00000080", "gallery"),
        # One item in two categories.
        ("img/WOMEN/Skirts/id_00000090/02_3_back.jpg", "id_00000090", "gallery"),
    ]
    header = ["7", "image_name                              item_id evaluation_status"]
    text(root, "Eval/list_eval_partition.txt", *header, *("   ".join(row) for row in rows))
    put(root / "Img", *(file for file, _, _ in rows))


INSHOP = {
    "train": {
        "img/WOMEN/Dresses/id_00000002/02_2_side.jpg": "Dresses/id_00000002/02",
        "img/WOMEN/Dresses/id_00000002/03_1_front.jpg": "Dresses/id_00000002/03",
    },
    "query": {
        "img/WOMEN/Denim/id_00000090/02_1_front.jpg": "Denim/id_00000090/02",
        "img/MEN/Denim/id_00000080/01_1_front.jpg": "Denim/id_00000080/01",
    },
    "gallery": {
        "img/MEN/Denim/id_00000080/01_7_additional.jpg": "Denim/id_00000080/01",
        "img/WOMEN/Skirts/id_00000090/02_3_back.jpg": "Skirts/id_00000090/02",
    },
    "test": {"img/MEN/Denim/id_00000080/01_7_additional.jpg": "Denim/id_00000080/01"},
}


def modelnet40(root):
    put(
        root,
        "airplane/train/airplane_0001_001.png",
        "airplane/train/airplane_0001_012.png",
        "airplane/test/airplane_0627_001.jpg",
        "night_stand/train/night_stand_0002.obj.shaded_v003.png",
    )


MODELNET40 = {
    "train": {
        "airplane/train/airplane_0001_012.png": "airplane/airplane_0001",
        "night_stand/train/night_stand_0002.obj.shaded_v003.png": "night_stand/night_stand_0002",
    },
    "test": {"airplane/test/airplane_0627_001.jpg": "airplane/airplane_0627"},
}


def inaturalist(root, year="2017"):
    categories = [
        {"id": 0, "name": "Abies amabilis", "supercategory": "Plantae"},
        {"id": 7, "name": "Acer rubrum", "supercategory": "Plantae"},
        {"id": 9, "name": "Abudefduf saxatilis", "supercategory": "Actinopterygii"},
    ]
    images = {
        "train": [
            (3, "train_val_images/Plantae/Abies amabilis/a.jpg", 0),
            (1, "train_val_images/x/b.jpg", 9),
        ],
        "val": [(5, "train_val_images/Plantae/Abies amabilis/c.jpg", 0)],
    }
    for split, rows in images.items():
        put(root, *(file for _, file, _ in rows))
        plain = {
            "images": [{"id": i, "file_name": file, "width": 7} for i, file, _ in rows],
            "annotations": [
                {"id": n, "image_id": i, "category_id": c} for n, (i, _, c) in enumerate(rows[::-1])
            ],
            "categories": categories,
        }
        (root / f"{split}{year}.json").write_text(json.dumps(plain))


INATURALIST = {
    "train": {
        "train_val_images/Plantae/Abies amabilis/a.jpg": "Plantae/Abies amabilis",
        "train_val_images/x/b.jpg": "Actinopterygii/Abudefduf saxatilis",
    },
    "val": {"train_val_images/Plantae/Abies amabilis/c.jpg": "Plantae/Abies amabilis"},
}


def flowers(root):
    put(root, *(f"jpg/image_{i:05}.jpg" for i in range(1, 6)))
    savemat(root / "imagelabels.mat", {"labels": np.array([[77, 77, 1, 1, 102]], np.uint8)})
    ids = {"trnid": [[3, 5]], "valid": [[1]], "tstid": [[2, 4]]}
    savemat(root / "setid.mat", {name: np.array(rows, np.uint16) for name, rows in ids.items()})


FLOWERS = {
    "train": {"jpg/image_00003.jpg": "001", "jpg/image_00005.jpg": "102"},
    "val": {"jpg/image_00001.jpg": "077"},
    "trainval": {"jpg/image_00001.jpg": "077", "jpg/image_00003.jpg": "001"},
    "test": {"jpg/image_00002.jpg": "077", "jpg/image_00004.jpg": "001"},
}


def imagenet(root):
    put(
        root,
        "train/n01440764/n01440764_1.JPEG",
        "train/n02084071/n02084071_2.JPEG",
        "train/n02084071/n02084071_3.JPEG",
        "train/n02121808/n02121808_4.JPEG",
        "val/n02084071/ILSVRC2012_val_00000001.JPEG",
    )


IMAGENET = {
    "train": {
        "train/n01440764/n01440764_1.JPEG": "n01440764",
        "train/n02084071/n02084071_3.JPEG": "n02084071",
    },
    "val": {"val/n02084071/ILSVRC2012_val_00000001.JPEG": "n02084071"},
}

WRITE = {
    "cars": (cars, CARS, {"train": 3, "test": 3, "train_classes": 3, "test_classes": 3}),
    "cub": (cub, CUB, {"train": 4, "test": 4, "train_classes": 4, "test_classes": 4}),
    "flowers": (flowers, FLOWERS, {"train": 2, "val": 1, "trainval": 3, "test": 2}),
    "imagenet": (imagenet, IMAGENET, {"train": 4, "val": 1}),
    "inaturalist": (inaturalist, INATURALIST, {"train": 2, "val": 1}),
    "inshop": (inshop, INSHOP, {"train": 3, "query": 2, "gallery": 2, "test": 4, "all": 7}),
    "modelnet40": (modelnet40, MODELNET40, {"train": 3, "test": 1}),
    "sop": (sop, SOP, {"train": 3, "test": 1}),
}


@pytest.fixture(params=sorted(WRITE))
def copy(request, tmp_path):
    """(name, folder, some images of each split with their labels, number of images) of a miniature copy."""
    write, expected, sizes = WRITE[request.param]
    write(tmp_path)
    return request.param, tmp_path, expected, sizes


def test_the_splits_have_their_images_and_labels(copy):
    name, folder, expected, sizes = copy
    trees = []
    for split, some in expected.items():
        source = load(DataConfig(name=name, path=str(folder)), split)
        labels = {
            source.name(i): source.tree.describe(source.labels[i]) for i in range(len(source))
        }
        assert len(source) == sizes[split]
        assert some.items() <= labels.items()
        assert source.tree.levels == LAYOUTS[name].levels
        for index in range(len(source)):
            example = source[index]
            assert example["image"].shape[1:] == (7, 3)
            np.testing.assert_array_equal(example["label"], source.labels[index])
        trees.append(source.tree)
    assert all(tree == trees[0] for tree in trees)
    with pytest.raises(ValueError, match=r"no split 'dev': .* has \["):
        load(DataConfig(name=name, path=str(folder)), "dev")


def test_the_content_id_is_of_files_and_labels(copy, tmp_path_factory):
    name, folder, expected, _ = copy
    split = next(iter(expected))
    other = tmp_path_factory.mktemp("other")
    WRITE[name][0](other)
    one, same = (load(DataConfig(name=name, path=str(root)), split) for root in (folder, other))
    assert one.content_id == same.content_id
    file = one.folder / one.files[0]
    file.write_bytes(file.read_bytes() + b"\0")
    assert load(DataConfig(name=name, path=str(folder)), split).content_id != one.content_id


def test_what_is_missing_and_what_differs_is_named(copy):
    """Miniatures have other numbers than what was published; a deleted image is named as well."""
    name, folder, expected, sizes = copy
    config = DataConfig(name=name, path=str(folder))
    split, some = next(iter(expected.items()))
    published = LAYOUTS[name].counts("")[split]["images"]
    lines, problems = verify.verify(config)
    assert problems >= len(LAYOUTS[name].counts(""))
    first = next(line for line in lines if line.startswith(f"{split}: "))
    assert f"{sizes[split]:,} images (published: {published:,})" in first
    assert "missing" not in "".join(lines)
    file = next(iter(some))
    source = load(config, split)
    (source.folder / file).unlink()
    if name not in ("imagenet", "modelnet40"):  # folders list what is there
        lines, more = verify.verify(config)
        # A file may be in several splits.
        assert more > problems
        assert f"  1 files are missing: {file}" in lines
        with pytest.raises(BadExample, match="No such file"):
            load(config, split)[list(source.files).index(file)]


def test_a_copy_that_is_as_published(tmp_path, monkeypatch, capsys):
    flowers(tmp_path)
    counts = {split: {"images": n} for split, n in WRITE["flowers"][2].items()}
    layout = dataclasses.replace(LAYOUTS["flowers"], published=lambda version: counts)
    monkeypatch.setattr("jaxcl.data.verify.LAYOUTS", {"flowers": layout})
    verify.main(["--data", f"flowers:{tmp_path}"])
    out = capsys.readouterr().out
    assert "train: 2 images, 2 flower; as published" in out
    assert out.endswith("nothing is missing\n")
    (tmp_path / "jpg" / "image_00003.jpg").write_bytes(b"no image")
    verify.main(["--data", f"flowers:{tmp_path}"])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1 points differ"):
        verify.main(["--data", f"flowers:{tmp_path}", "--decode"])
    assert "1 files are bad: 'jpg/image_00003.jpg': not an image" in capsys.readouterr().out


def test_an_item_in_two_categories(tmp_path, monkeypatch, capsys):
    """In the tree it is two products; the published numbers and the retrieval of the benchmark are of items."""
    inshop(tmp_path)
    tree = DataConfig(name="inshop", path=str(tmp_path))
    items = dataclasses.replace(tree, label_keys=("product",))
    assert level_names(items) == ("product",)

    def relevant(config):
        """Of each query the gallery images of its product, as the evaluator of retrieval has the classes."""
        query, gallery = (load(config, split) for split in ("query", "gallery"))
        level = query.tree.level("product")
        classes = Classes.of(gallery.labels, level)
        asked, there = classes.number(query.labels), classes.number(gallery.labels)
        return {
            query.name(i): {gallery.name(j) for j in np.flatnonzero(there == asked[i])}
            for i in range(len(query))
        }

    skirt, denim = (
        "img/WOMEN/Skirts/id_00000090/02_3_back.jpg",
        "img/WOMEN/Denim/id_00000090/02_1_front.jpg",
    )
    other = {
        "img/MEN/Denim/id_00000080/01_1_front.jpg": {
            "img/MEN/Denim/id_00000080/01_7_additional.jpg"
        }
    }
    assert relevant(tree) == {**other, denim: set()}
    assert relevant(items) == {**other, denim: {skirt}}
    assert load(items, "all").tree.names == (("id_00000002", "id_00000080", "id_00000090"),)

    counts = {
        "test": {"images": 4, "product": 2},
        "all": {"images": 7, "category": 3, "product": 3},
    }
    layout = dataclasses.replace(LAYOUTS["inshop"], published=lambda version: counts)
    monkeypatch.setattr("jaxcl.data.verify.LAYOUTS", {"inshop": layout})
    verify.main(["--data", f"inshop:{tmp_path}"])
    found = capsys.readouterr().out.splitlines()
    assert found[1].startswith("all: 7 images, 3 category, 4 product (3 names), 5 variation")
    assert all(line.endswith("; as published") for line in found[:2])
    verify.main(["--data", f"inshop:{tmp_path}", "--set", "label_keys=('product',)"])
    assert "test: 4 images, 2 product; as published" in capsys.readouterr().out
    counts["all"]["product"] = 4
    with pytest.raises(SystemExit, match="1 points differ"):
        verify.main(["--data", f"inshop:{tmp_path}"])
    assert "4 product (3 names; published: 4)" in capsys.readouterr().out
    unknown = dataclasses.replace(tree, label_keys=("item",))
    with pytest.raises(ValueError, match=r"a level of data\.label_keys is 'item': expected one of"):
        load(unknown, "train")


def test_superclasses_of_the_folders_of_imagenet(tmp_path, capsys):
    """Ancestors at a depth; a class that is not deeper is its own superclass. `verify` counts both levels."""
    imagenet(tmp_path)
    # The dog (n0208) and the cat (n0212) are of one kind at depth 2; the fish is at depth 1 itself.
    lines = ["n0 n1", "n1 n2", "n2 n02084071", "n2 n02121808", "n0 n01440764"]
    text(tmp_path, "is_a.txt", *lines)
    settings = {"taxonomy": str(tmp_path / "is_a.txt"), "taxonomy_depth": (2,)}
    source = load(DataConfig(name="imagenet", path=str(tmp_path), **settings), "train")
    assert source.tree.levels == ("depth2", "label")
    assert {source.tree.describe(label) for label in source.labels} == {
        "n01440764/n01440764", "n2/n02084071", "n2/n02121808"
    }  # fmt: skip
    flags = [f"--set={name}={value}" for name, value in settings.items()]
    with pytest.raises(SystemExit, match="points differ"):
        verify.main([f"--data=imagenet:{tmp_path}", *flags])
    found = capsys.readouterr().out
    assert "2 depth2, 3 label (published: 1,000)" in found
    assert "1 depth2, 1 label (published: 1,000)" in found


@pytest.mark.parametrize(
    ("name", "version", "known"),
    [
        ("inaturalist", "2020x", "['', '2017', '2018', '2019']"),
        ("inaturalist", "2020", "['', '2017', '2018', '2019']"),
        ("modelnet40", "al", "['', 'all']"),
        ("cub", "2010", "['']"),
    ],
)
def test_versions_that_there_are_not(tmp_path, name, version, known):
    WRITE[name][0](tmp_path)
    message = re.escape(f"data.dataset is {version!r}: expected one of {known}")
    flags = [f"--data={name}:{tmp_path}", "--set", f"dataset={version}"]
    with pytest.raises(SystemExit, match=rf"^jaxcl\.data\.verify: {message}"):
        verify.main(flags)
    with pytest.raises(SystemExit, match=rf"^jaxcl\.data\.splits: {message}"):
        splits.main([*flags, "--by=x", f"--out={tmp_path / 'split.json'}"])


def test_a_year_of_the_command_line_is_text(tmp_path, capsys):
    """As in the docstring of the command."""
    inaturalist(tmp_path, "2019")
    flags = [f"--data=inaturalist:{tmp_path}", "--set", "dataset=2019"]
    with pytest.raises(SystemExit, match="points differ"):
        verify.main(flags)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "train: 2 images (published: 265,213), 2 supercategory, 2 species (published: 1,010)"
    )
    path, out = tmp_path / "train2019.json", tmp_path / "split.json"
    plain = json.loads(path.read_text())
    for i in range(40):  # enough of each for a share
        plain["images"].append({"id": 100 + i, "file_name": f"{i}.jpg"})
        plain["annotations"].append({"image_id": 100 + i, "category_id": (0, 9)[i % 2]})
    path.write_text(json.dumps(plain))
    splits.main([*flags, "--by=supercategory", f"--out={out}", "--val=0", "--test=0.5"])
    assert sum(map(len, (split_file.read(out).seen, split_file.read(out).unseen))) == 2


def test_imagenet_100_are_the_listed_classes_of_imagenet(tmp_path):
    """By a list of ids, in all splits; another class has neither images nor a number."""
    imagenet(tmp_path)
    text(tmp_path, "imagenet100.txt", "n02121808", "n02084071")
    config = DataConfig(
        name="imagenet", path=str(tmp_path), classes_file=str(tmp_path / "imagenet100.txt")
    )
    train, val = load(config, "train"), load(config, "val")
    assert (len(train), len(val)) == (3, 1)
    assert train.tree == val.tree
    assert set(train.tree.names[0]) == {"n02121808", "n02084071"}
    named = {
        source.name(i): source.tree.describe(source.labels[i])
        for source in (train, val)
        for i in range(len(source))
    }
    assert named == {
        "train/n02084071/n02084071_2.JPEG": "n02084071",
        "train/n02084071/n02084071_3.JPEG": "n02084071",
        "train/n02121808/n02121808_4.JPEG": "n02121808",
        "val/n02084071/ILSVRC2012_val_00000001.JPEG": "n02084071",
    }
    assert train[0]["image"].shape[1:] == (7, 3)


def test_missing_files_are_named_whatever_is_asked_of_the_data(tmp_path):
    """A part of the classes, other labels, and splits made of others: files are looked for beneath all of them."""
    flowers(tmp_path)
    config = DataConfig(name="flowers", path=str(tmp_path))
    train = load(config, "train")
    name = train.name(1)
    (train.folder / name).unlink()
    own = train.tree.names[0][train.labels[1, 0]]
    text(tmp_path, "classes.txt", own)
    every = train.tree.names[0]
    text(tmp_path, "tree.json", json.dumps({flower: ["plant"] for flower in every}))
    file = split_file.make(train, "flower", 0.5)
    text(tmp_path, "split.json", file.to_json())
    for settings in (
        {"classes_file": str(tmp_path / "classes.txt")},
        {"taxonomy": str(tmp_path / "tree.json")},
        {"taxonomy": str(tmp_path / "tree.json"), "classes_file": str(tmp_path / "classes.txt")},
        {"holdout": 0.9},
        {"split_file": str(tmp_path / "split.json")},
    ):
        lines, problems = verify.verify(dataclasses.replace(config, **settings))
        assert f"  1 files are missing: {name}" in lines, settings
        assert problems
    part = subset(load(config, "train"), [1, 0, 1])
    assert verify.missing(part) == [name, name]
    tree = LabelTree(("kind",), (("a",),))
    assert verify.missing(relabelled(part, np.zeros((3, 1), np.int32), tree)) == [name, name]
    assert verify.missing(load(DataConfig(), "test")) == []


def test_lists_that_are_not_there_are_named(copy, tmp_path_factory, capsys):
    name, _, expected, _ = copy
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match=str(empty)):
        load(DataConfig(name=name, path=str(empty)), next(iter(expected)))
    with pytest.raises(SystemExit, match="points differ"):
        verify.main(["--data", f"{name}:{empty}"])
    assert str(empty) in capsys.readouterr().out


def test_verify_of_a_folder_and_of_mistakes(tmp_path, capsys):
    put(tmp_path, "a/1.png", "b/2.png")
    verify.main(["--data", f"folder:{tmp_path}"])
    assert capsys.readouterr().out == "train: 2 images, 2 label\nnothing is missing\n"
    with pytest.raises(SystemExit, match=r"--set lables=path: .*did you mean 'labels'"):
        verify.main(["--data", f"folder:{tmp_path}", "--set", "lables=path"])


def test_the_half_of_the_classes_can_be_the_split_for_training(tmp_path):
    cub(tmp_path)
    splits = {"train": "train_classes", "test": "test_classes"}
    config = DataConfig(name="cub", path=str(tmp_path), splits=splits, holdout=0.3)
    train, val, test = (load(config, split) for split in ("train", "val", "test"))
    assert len(train) + len(val) == 4
    seen = {train.tree.describe(label) for label in train.labels}
    assert seen <= {"001.Albatross", "100.Pelican"}
    assert not seen & {test.tree.describe(label) for label in test.labels}


def test_other_years_of_inaturalist(tmp_path):
    inaturalist(tmp_path, "2019")
    config = DataConfig(name="inaturalist", path=str(tmp_path), dataset="2019")
    assert len(load(config, "train")) == 2
    # A species without an image has its number too.
    assert len(load(config, "train").tree.names[1]) == 3
    with pytest.raises(ValueError, match=r"data\.dataset is '2020': expected one of"):
        load(DataConfig(name="inaturalist", path=str(tmp_path), dataset="2020"), "train")


def change(folder, file, old, new):
    path = folder / file
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new))


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        (
            "cub",
            "images.txt",
            "3 100.P",
            "2 100.P",
            r"line 3 of .*images.txt' is about '2' a second time",
        ),
        (
            "cub",
            "images.txt",
            "8 200.Wren/Wren_2.jpg\n",
            "",
            "image_class_labels.txt .* differ: 1 images .* 8",
        ),
        ("cub", "classes.txt", "101 101.Grebe\n", "", "does not name the class 101"),
        ("cub", "train_test_split.txt", "1 1", "1 2", "flag of train_test_split.txt is '2'"),
        ("cub", "image_class_labels.txt", "2 1\n", "2\n", "line 2 .* is '2': expected 2 columns"),
        (
            "sop",
            "Ebay_test.txt",
            "super_class_id",
            "super",
            "line 1 .* expected 'image_id class_id super_class_id path'",
        ),
        (
            "sop",
            "Ebay_train.txt",
            "2 1 1 bicycle",
            "2 1 1 chair",
            "product '1' stands under two parents",
        ),
        (
            "sop",
            "Ebay_train.txt",
            "bicycle_final/111_0",
            "111_0",
            "line 2 of Ebay_train.txt: .* in no category",
        ),
        (
            "inshop",
            "Eval/list_eval_partition.txt",
            "item_id ",
            "item ",
            "line 2 of .* expected 'image_name item_id",
        ),
        (
            "inshop",
            "Eval/list_eval_partition.txt",
            "gallery",
            "galery",
            "evaluation_status in line 8 .* 'galery'",
        ),
        (
            "inshop",
            "Eval/list_eval_partition.txt",
            "/01_7_",
            "/x_7_",
            "line 8 of .* expected img/GENDER/CATEGORY/id_00000080",
        ),
        ("inaturalist", "val2017.json", '"category_id": 0', '"category_id": 5', "no category 5"),
        (
            "inaturalist",
            "val2017.json",
            '"image_id": 5',
            '"image_id": 6',
            "2 images have no annotation",
        ),
        (
            "inaturalist",
            "val2017.json",
            "Acer rubrum",
            "Acer",
            "categories of val2017.json .* not those of train",
        ),
        ("inaturalist", "val2017.json", "file_name", "file", "'file_name' is missing"),
        ("inaturalist", "val2017.json", "{", "", "cannot be read"),
    ],
)
def test_malformed_lists(tmp_path, name, file, old, new, message):
    WRITE[name][0](tmp_path)
    change(tmp_path, file, old, new)
    with pytest.raises(ValueError, match=message):
        load(DataConfig(name=name, path=str(tmp_path)), "train")


def test_malformed_matlab_files(tmp_path):
    cars(tmp_path)
    config = DataConfig(name="cars", path=str(tmp_path))
    savemat(
        tmp_path / "cars_annos.mat",
        {"annotations": np.array([(1,)], [("a", object)]), "class_names": ["b"]},
    )
    with pytest.raises(ValueError, match=r"have no \['class', 'relative_im_path', 'test'\]"):
        load(config, "train")
    savemat(tmp_path / "cars_annos.mat", {"annotations": 1})
    with pytest.raises(ValueError, match="has no variable 'class_names'"):
        load(config, "train")
    (tmp_path / "cars_annos.mat").write_bytes(b"no matlab")
    with pytest.raises(ValueError, match=r"cars_annos.mat' cannot be read"):
        load(config, "train")
    flowers(tmp_path)
    savemat(tmp_path / "setid.mat", {"trnid": [[6]], "valid": [[1]], "tstid": [[2]]})
    with pytest.raises(
        ValueError, match=r"trnid of .* has the images 6 to 6, and imagelabels.mat labels 1 to 5"
    ):
        load(DataConfig(name="flowers", path=str(tmp_path)), "train")


def test_other_files_among_the_views(tmp_path):
    modelnet40(tmp_path)
    put(tmp_path, "airplane/extra/airplane_1_1.png")
    with pytest.raises(
        ValueError,
        match=r"'airplane/extra/airplane_1_1.png' in .*: expected CATEGORY/train or test",
    ):
        load(DataConfig(name="modelnet40", path=str(tmp_path)), "train")


def test_published_numbers_add_up():
    """The sums that the papers and sites state."""

    def total(name, splits, what="images", version=""):
        counts = LAYOUTS[name].counts(version)
        return sum(counts[split][what] for split in splits)

    both = ("train", "test")
    halves = ("train_classes", "test_classes")
    assert total("cub", both) == total("cub", halves) == 11_788
    assert total("cars", both) == total("cars", halves) == 16_185
    assert total("cars", halves, "model") == 196
    assert total("sop", both) == 120_053
    assert total("sop", both, "product") == 22_634
    assert total("inshop", ("train", "query", "gallery")) == 52_712
    assert total("inshop", both) == 52_712
    assert total("inshop", both, "product") == total("inshop", ["all"], "product") == 7_982
    assert total("inshop", ["all"]) == 52_712
    assert total("inshop", ["all"], "category") == 17
    assert total("flowers", ("train", "val", "test")) == 8_189
    assert total("inaturalist", ("train", "val")) == 579_184 + 95_986
    assert total("inaturalist", ("train", "val"), version="2019") == 268_243
    assert total("imagenet", ("train", "val")) == 1_331_167
    assert total("modelnet40", both, version="all") == 12 * 12_311
    assert total("modelnet40", both, "model") == 3_983

"""Label trees from files, and lists of classes."""

import json

import numpy as np
import pytest
from corpus import encode, picture

from jaxcl.data import (
    ArraySource,
    DataConfig,
    LabelTree,
    by_path,
    level_names,
    load,
    taxonomy,
)
from jaxcl.data.relabel import only_classes, with_taxonomy

# A dog is an animal by two ways, one of them shorter; a spoon is close to the root.
IS_A = [
    ("entity", "thing"),
    ("entity", "being"),
    ("being", "animal"),
    ("animal", "canine"),
    ("canine", "dog"),
    ("being", "pet"),
    ("pet", "dog"),
    ("animal", "feline"),
    ("feline", "cat"),
    ("thing", "spoon"),
]


def write_is_a(path, turned=False):
    lines = [f"{b} {a}" if turned else f"{a} {b}" for a, b in IS_A]
    path.write_text("\n".join(lines) + "\n\n")
    return path


@pytest.mark.parametrize("turned", [False, True])
def test_is_a_lines(tmp_path, turned):
    path = write_is_a(tmp_path / "wordnet.is_a.txt", turned)
    found = taxonomy.read(path, (1, 2))
    assert found.levels("label") == ("depth1", "depth2", "label")
    assert found.path("cat") == ("being", "animal", "cat")
    assert found.path("dog") == ("being", "pet", "dog")  # the shortest way
    assert found.path("spoon") == ("thing", "spoon", "spoon")  # it is not deeper
    assert found.path("being") == ("being", "being", "being")
    assert taxonomy.read(path, (3,)).path("cat") == ("feline", "cat")
    assert found.path("horse") is None


def test_equally_short_ways_do_not_depend_on_the_order_of_the_lines(tmp_path):
    for number, lines in enumerate(("r a\nr b\na x\nb x\nr y\n", "b x\na x\nr y\nr b\nr a\n")):
        path = tmp_path / f"{number}.txt"
        path.write_text(lines)
        assert taxonomy.read(path, (1,)).path("x") == ("a", "x")


def test_json_and_csv(tmp_path):
    paths = {"tabby": ["animal", "cat"], "spoon": ["thing"], "oak": ["plant", "tree"]}
    (tmp_path / "t.json").write_text(json.dumps(paths))
    lines = ["kingdom,kind,name", "animal,cat,tabby", "thing,spoon,", "plant,tree,oak"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    one, two = (taxonomy.read(tmp_path / name) for name in ("t.json", "t.csv"))
    assert dict(one.paths) == dict(two.paths)
    assert one.path("spoon") == ("thing", "spoon")
    assert one.levels("label") == ("depth0", "depth1", "label")
    assert two.levels("label") == ("kingdom", "kind", "name")


@pytest.mark.parametrize(
    ("name", "content", "depths", "message"),
    [
        ("t.txt", "a b\n", (), r"taxonomy_depth=\(\): expected the distances"),
        ("t.txt", "a b\n", (2, 1), "ascending"),
        ("t.txt", "a b\n", (0,), r"taxonomy_depth=\(0,\)"),
        ("t.txt", "a b\na\n", (1,), "line 2 of .* is 'a': expected two names"),
        ("t.txt", "a a\n", (1,), "line 1 of"),
        ("t.txt", "\n", (1,), "lists no names"),
        ("t.txt", "r a\na b\nb c\nc b\nr d\n", (1,), None),
        ("t.txt", "r a\nb c\nc b\nr d\n", (1,), "goes round in a circle: b, c have no way"),
        ("t.json", "{", (), "cannot be read"),
        ("t.json", "[]", (), "must be an object"),
        ("t.json", '{"a": "b"}', (), "gives 'a' the ancestors 'b'"),
        ("t.json", '{"a": ["b", ""]}', (), "expected a list of names"),
        ("t.json", '{"a": ["b"]}', (1,), r"taxonomy_depth=\(1,\) is for lists of is-a lines"),
        ("t.csv", "k,n\na,\n,b\n", (), "line 3 of .* has a name below an empty cell"),
        ("t.csv", "k,n\na,x\nb,x\n", (), "line 3 of .* gives 'x' a second path: b/x, after a/x"),
        ("t.csv", "k,n\na,x\n,\n", (), "line 3 of"),
        ("t.csv", "k,n\na\n", (), "line 2 of .* has 1 cells"),
        ("t.csv", "k,k\na,b\n", (), "must have one column 'k'"),
        ("t.csv", "k,n\n", (), "lists no names"),
    ],
)
def test_malformed_taxonomies(tmp_path, name, content, depths, message):
    path = tmp_path / name
    path.write_text(content)
    if message is None:
        assert taxonomy.read(path, depths).path("b") == ("a", "b")
        return
    with pytest.raises(ValueError, match=message):
        taxonomy.read(path, depths)


@pytest.mark.parametrize("name", ["t.txt", "t.json", "t.csv"])
def test_a_taxonomy_that_is_not_there(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be read"):
        taxonomy.read(tmp_path / name, (1,) if name == "t.txt" else ())


NAMES = ("cat", "dog", "spoon")


def in_memory(labels, names=NAMES):
    images = np.arange(len(labels) * 4, dtype=np.uint8).reshape(-1, 2, 2, 1)
    return ArraySource(images, np.array(labels)[:, None], LabelTree(("label",), (names,)))


def test_labels_become_paths(tmp_path):
    source = in_memory([2, 0, -1, 1, 0])
    found = with_taxonomy(source, taxonomy.read(write_is_a(tmp_path / "t"), (1,)))
    assert found.tree == LabelTree(("depth1", "label"), (("being", "thing"), NAMES))
    np.testing.assert_array_equal(found.labels, [[1, 2], [0, 0], [-1, -1], [0, 1], [0, 0]])
    np.testing.assert_array_equal(found[3]["image"], source[3]["image"])
    assert isinstance(found, ArraySource)
    numbered = by_path(found)
    assert numbered.tree.names == (("being", "thing"), ("being/cat", "being/dog", "thing/spoon"))


def test_paths_may_end_early(tmp_path):
    (tmp_path / "t.json").write_text(
        '{"cat": ["animal", "feline"], "dog": ["animal"], "spoon": []}'
    )
    found = with_taxonomy(in_memory([0, 1, 2]), taxonomy.read(tmp_path / "t.json"))
    described = [found.tree.describe(label) for label in found.labels]
    assert described == ["animal/feline/cat", "animal/dog", "spoon"]
    np.testing.assert_array_equal(found.labels[:, 2], [0, -1, -1])


def test_names_that_the_taxonomy_does_not_have(tmp_path):
    ancestors = taxonomy.read(write_is_a(tmp_path / "t"), (1,))
    with pytest.raises(ValueError, match="no path for 1 of the 3 names of level 'label': horse"):
        with_taxonomy(in_memory([0], ("cat", "dog", "horse")), ancestors)
    two = ArraySource(np.zeros((1, 2, 2), np.uint8), np.zeros((1, 2), int))
    with pytest.raises(ValueError, match=r"the data have the levels \['level0', 'level1'\]"):
        with_taxonomy(two, ancestors)


def test_only_some_classes():
    source = in_memory([2, 0, -1, 1, 2])
    part = only_classes(source, ["spoon silver spoon", "cat"])
    assert part.tree.names == (("cat", "spoon"),)
    np.testing.assert_array_equal(part.labels[:, 0], [1, 0, 1])
    np.testing.assert_array_equal(part[2]["image"], source[4]["image"])
    with pytest.raises(
        ValueError, match=r"1 of the 2 classes of .* among the 3 at level 'label': horse"
    ):
        only_classes(source, ["cat", "horse"])
    with pytest.raises(ValueError, match="none of the 2 images is of a class"):
        only_classes(in_memory([0, 1]), ["spoon"])
    with pytest.raises(ValueError, match="needs labels"):
        only_classes(ArraySource(np.zeros((1, 2, 2), np.uint8)), ["cat"])


@pytest.fixture
def pets(tmp_path):
    for number, name in enumerate(("train/cat/1", "train/dog/2", "train/spoon/3", "val/cat/4")):
        path = tmp_path / "pets" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(5 + number, 7), "PNG"))
    write_is_a(tmp_path / "is_a.txt")
    (tmp_path / "classes.txt").write_text("# two of them\ncat\n\nspoon\n")
    return tmp_path


def test_the_settings_reach_every_split(pets):
    def config(**options):
        splits = {"train": "train", "val": "val"}
        return DataConfig(name="folder", path=str(pets / "pets"), splits=splits, **options)

    def described(source):
        return [source.tree.describe(label) for label in source.labels]

    plain = load(config(), "train")
    whole = config(taxonomy=str(pets / "is_a.txt"), taxonomy_depth=(1, 2))
    train, val = load(whole, "train"), load(whole, "val")
    assert described(train) == ["being/animal/cat", "being/pet/dog", "thing/spoon/spoon"]
    assert train.tree == val.tree
    assert described(val) == ["being/animal/cat"]
    assert train[1]["image"].shape == plain[1]["image"].shape == (6, 7, 3)
    assert train.name(1) == plain.name(1)
    some = config(
        taxonomy=str(pets / "is_a.txt"), taxonomy_depth=(1,), classes_file=str(pets / "classes.txt")
    )
    assert described(load(some, "train")) == ["being/cat", "thing/spoon"]
    assert load(some, "train").tree == load(some, "val").tree
    ids = [load(c, "train").content_id for c in (config(), whole, some)]
    assert len(set(ids)) == 3
    held = config(classes_file=str(pets / "classes.txt"), holdout=0.5)
    assert len(load(held, "seen")) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes_file": "missing.txt"}, r"data\.classes_file='.*missing.txt' cannot be read"),
        ({"classes_file": "empty.txt"}, "lists no class"),
        ({"taxonomy": "missing.csv"}, "cannot be read"),
    ],
)
def test_files_that_are_not_there(pets, options, message):
    (pets / "empty.txt").write_text("# none\n")
    options = {key: str(pets / value) for key, value in options.items()}
    config = DataConfig(name="folder", path=str(pets / "pets" / "train"), **options)
    with pytest.raises(ValueError, match=message):
        load(config, "train")


def test_a_depth_without_a_file_is_refused():
    with pytest.raises(ValueError, match=r"taxonomy_depth=\(4,\) without a file"):
        DataConfig(taxonomy_depth=(4,))


def test_levels_are_known_without_the_data(pets):
    nowhere = str(pets / "nowhere")
    assert level_names(DataConfig(name="inshop", path=nowhere)) == (
        "category",
        "product",
        "variation",
    )
    assert level_names(DataConfig(name="table", path=nowhere, label_keys=("a", "b"))) == ("a", "b")
    assert level_names(DataConfig(name="folder", path=nowhere)) == ("label",)
    is_a = {"taxonomy": str(pets / "is_a.txt"), "taxonomy_depth": (1, 2)}
    imagenet = DataConfig(name="imagenet", path=nowhere, **is_a)
    assert level_names(imagenet) == ("depth1", "depth2", "label")

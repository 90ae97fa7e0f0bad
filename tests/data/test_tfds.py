import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxcl.data import BadExample, TfdsSource, tfds


def test_reads_a_prepared_data_set(tfds_dir):
    source = TfdsSource("tiny_shapes", "train", tfds_dir)
    assert len(source) == 18
    assert source.tree.levels == ("label",)
    assert source.tree.names == (("disc", "square", "stripes"),)
    np.testing.assert_array_equal(np.bincount(source.labels[:, 0]), [6, 6, 6])
    for i in (0, 7, 17):
        image, label = source[i]["image"], source[i]["label"]
        assert image.dtype == np.uint8
        assert 36 <= image.shape[0] <= 40
        assert 34 <= image.shape[1] <= 40
        np.testing.assert_array_equal(label, source.labels[i])
        # Each picture has two colours; stripes alone are the same in each row.
        assert len(np.unique(image.reshape(-1, 3), axis=0)) == 2
        assert (image == image[:1]).all() == (label[0] == 2)
    assert source.name(3) == "tiny_shapes/1.0.0 train 3"


def test_split_expressions(tfds_dir):
    whole = TfdsSource("tiny_shapes", "train", tfds_dir)
    part = TfdsSource("tiny_shapes", "train[50%:]", tfds_dir)
    assert len(part) == 9
    np.testing.assert_array_equal(part[0]["image"], whole[9]["image"])
    np.testing.assert_array_equal(part.labels, whole.labels[9:])
    assert part.content_id != whole.content_id


def test_without_labels(tfds_dir):
    source = TfdsSource("tiny_shapes", "train", tfds_dir, label_keys=())
    assert source.labels.shape == (18, 0)
    assert source[0]["label"].shape == (0,)


def test_content_id_is_stable_and_of_the_split(tfds_dir):
    ids = [TfdsSource("tiny_shapes", s, tfds_dir).content_id for s in ("train", "train", "test")]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("dataset", "split", "options", "message"),
    [
        ("tiny_shape", "train", {}, "TFDS has no data set 'tiny_shape' in"),
        ("tiny_shapes:9.9.9", "train", {}, "TFDS has no data set"),
        ("tiny_shapes", "trian", {}, r"split 'trian' .*\['test', 'train'\]"),
        ("tiny_shapes", "train[9:zz]", {}, "split .* cannot be opened"),
        ("mnist", "train", {}, "must be prepared as ArrayRecord"),
        ("tiny_shapes", "train", {"image_key": "picture"}, "no image feature 'picture'"),
        ("tiny_shapes", "train", {"label_keys": ("kind",)}, "no ClassLabel 'kind'"),
        ("tiny_shapes", "train", {"label_keys": ("image",)}, "no ClassLabel 'image'"),
    ],
)
def test_clear_errors(tfds_dir, dataset, split, options, message):
    with pytest.raises(ValueError, match=message):
        TfdsSource(dataset, split, tfds_dir, **options)


def test_labels_of_a_large_split_are_kept_beside_the_data(tfds_dir, tmp_path, monkeypatch):
    expected = TfdsSource("tiny_shapes", "train", tfds_dir).labels
    place = shutil.copytree(tfds_dir, tmp_path / "tfds")
    monkeypatch.setattr(tfds, "KEPT_FROM", 18)
    monkeypatch.setattr(tfds, "READ_AT_ONCE", 7)

    def source(split="train"):
        return TfdsSource("tiny_shapes", split, str(place))

    def kept():
        return sorted(place.rglob("*.npy"))

    assert source("test").labels.shape == (6, 1)
    assert not kept()  # a small split is read in a moment
    np.testing.assert_array_equal(source().labels, expected)
    (file,) = kept()
    assert source().content_id in file.name
    again = source()
    monkeypatch.setattr(again, "_records", [None] * 18)  # nothing is read
    np.testing.assert_array_equal(again.labels, expected)
    for damage in (b"", file.read_bytes()[:-4], b"x" * 300):
        file.write_bytes(damage)
        np.testing.assert_array_equal(source().labels, expected)
        np.testing.assert_array_equal(np.load(file), expected)
    np.save(file, expected + 5)  # out of range
    np.testing.assert_array_equal(source().labels, expected)
    np.save(file, expected[1:])
    np.testing.assert_array_equal(source().labels, expected)
    # Where nothing can be written, they are read each time.
    file.unlink()
    monkeypatch.setattr(tfds.epath.Path(str(file)).__class__, "write_bytes", refuse)
    np.testing.assert_array_equal(source().labels, expected)
    assert not kept()


def refuse(*_):
    raise PermissionError("read-only")


def test_unreadable_records_are_named(tfds_dir, monkeypatch):
    source = TfdsSource("tiny_shapes", "train", tfds_dir)
    monkeypatch.setattr(source, "_records", [{"image": b"no image", "label": 1}] * 3)
    with pytest.raises(BadExample, match=r"tiny_shapes/1\.0\.0 train 2"):
        source[2]


def test_tensorflow_is_not_needed(tfds_dir):
    """Not even where it is installed: a process that cannot find it reads the data."""
    code = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Hide(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        if name != 'tensorflow': return super().find_spec(name, path, target)\n"
        "sys.meta_path[sys.meta_path.index(PathFinder)] = Hide\n"
        "from jaxcl.data import TfdsSource\n"
        f"source = TfdsSource('tiny_shapes', 'test', {tfds_dir!r})\n"
        "assert source[0]['image'].shape[2] == 3 and source.labels.shape == (6, 1)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

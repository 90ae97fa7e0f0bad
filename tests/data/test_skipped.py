"""The file of skipped images, and how many of them are said."""

import os

import numpy as np
import pytest

from jaxcl.data import BadExample, FolderSource, Skipped, relabel, skipped
from jaxcl.data.subset import subset


class Folder:
    """A source in which nothing can be read."""

    def __init__(self, names):
        self.names = names
        self.read = 0

    def name(self, index):
        return self.names[index]

    place = name

    def __getitem__(self, index):
        self.read += 1
        raise BadExample(self.name(index), f"not an\nimage ({index})")


def batch(*indices):
    return {"skipped": np.array([-1, *indices, -1], np.int32)}


def names(count):
    return Folder([f"folder/{i}.png" for i in range(count)])


def test_every_image_is_in_the_file_once_and_the_first_ones_are_said(tmp_path):
    path, said, source = tmp_path / "run" / "skipped.txt", [], names(50)
    found = Skipped(said.append, path)
    assert found.count(batch(), source) == 0
    assert not path.exists()
    assert found.count(batch(*range(15)), source) == 15
    assert len(said) == 15
    assert said[3] == "skipped, cannot be read: 'folder/3.png': not an image (3)"
    assert (
        found.count(batch(3, 3, *range(10, 30)), source) == 22
    )  # counted as often as they are met
    assert len(said) == 21
    assert said[-2].startswith("skipped, cannot be read: 'folder/19.png'")
    assert said[-1] == f"more images cannot be read; they are named in {path}"
    assert found.count(batch(*range(50)), source) == 50
    assert len(said) == 21
    lines = path.read_text().splitlines()
    assert lines == [f"'folder/{i}.png'\tnot an image ({i})" for i in range(50)]
    assert source.read == 50


@pytest.mark.parametrize("sizes", [(20, 1), (21,), (19, 2), (1,) * 21])
def test_the_line_about_the_others_is_said_once(sizes):
    said, source, done = [], names(60), 0
    found = Skipped(said.append)
    for size in (*sizes, 1, 30):
        found.count(batch(*range(done, done + size)), source)
        done += size
    assert len(said) == skipped.SHOWN + 1
    assert said[-1] == "more images cannot be read; they are skipped without a line"


def test_a_resumed_run_goes_on_with_the_file(tmp_path):
    path, source = tmp_path / "skipped.txt", names(5)
    source.names[1] = "a tab\tand\na line break\udcff"
    Skipped([].append, path).count(batch(0, 1, 2), source)
    whole = path.read_text()
    assert len(whole.splitlines()) == 3
    # Killed in the middle of a line, and of a letter.
    path.write_bytes(whole.encode() + "'folder/é".encode()[:-1])
    said = []
    found = Skipped(said.append, path, resume=True)
    assert said == [f"images that cannot be read, 3 until now, are named in {path}"]
    assert found.count(batch(1, 2, 3), source) == 3
    assert len(said) == 2
    assert path.read_text() == whole + "'folder/3.png'\tnot an image (3)\n"
    Skipped(said.append, path)  # a run that begins anew
    assert not path.exists()
    assert len(said) == 2


def test_what_can_be_read_the_second_time_is_named_too(tmp_path):
    class Flaky(Folder):
        def __getitem__(self, index):
            return {}

    path = tmp_path / "skipped.txt"
    Skipped([].append, path).count(batch(0), Flaky(["x"]))
    assert path.read_text() == "'x'\tcould not be read then, but can be now\n"


def test_images_of_one_name_in_two_splits_are_two_images(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for name in ("x.png", "y.png"):
            (tmp_path / split / name).write_bytes(b"no image")
    train, test = (FolderSource(tmp_path / split) for split in ("train", "test"))
    part = subset(relabel.Relabelled(train, train.labels, train.tree), [1])
    said = []
    found = Skipped(said.append, tmp_path / "skipped.txt")
    for rows, source in (((0, 1), train), ((0,), part), ((1,), test)):
        found.count(batch(*rows), source)
    assert found.total == 4
    named = [
        line.partition("\t")[0] for line in (tmp_path / "skipped.txt").read_text().splitlines()
    ]
    assert named == [repr(str(tmp_path / p)) for p in ("train/x.png", "train/y.png", "test/y.png")]
    assert len(said) == 3


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "skipped.txt"
    found = Skipped([].append, path)
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        found.count(batch(0), names(1))
    assert error.value.filename == os.fspath(path)


def test_an_error_that_is_under_way_is_not_hidden(monkeypatch):
    def fails(self):
        raise OSError("the bucket is gone")

    monkeypatch.setattr(Skipped, "flush", fails)
    said = []
    with pytest.raises(KeyError), Skipped(said.append):
        raise KeyError
    assert said == ["None could not be written: the bucket is gone"]
    with pytest.raises(OSError, match="is gone"), Skipped(said.append):
        pass

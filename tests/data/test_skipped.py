"""The file of skipped images, and how many of them are said."""

import numpy as np
import pytest

from jaxcl.data import BadExample, Skipped, skipped


class Folder:
    """A source in which nothing can be read."""

    def __init__(self, names):
        self.names = names
        self.read = 0

    def name(self, index):
        return self.names[index]

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
    path.write_text(whole + "'folder/3.p")  # killed in the middle of a line
    said = []
    found = Skipped(said.append, path, resume=True)
    assert said == [f"3 images that cannot be read are named in {path}"]
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

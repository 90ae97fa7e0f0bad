import os
import shutil

import numpy as np
import pytest
from corpus import picture, png

from jaxcl.data import BadExample, FolderSource

FILES = (
    "0.png",
    "cat/3.png",
    "cat/tabby/1.png",
    "cat/tabby/2.PNG",
    "dog/4.jpg",
    "dog/hound/5.png",
)


def test_lists_all_images_by_path(tree_of_images):
    source = FolderSource(tree_of_images)
    assert source.files == FILES
    assert [source.name(i) for i in range(len(source))] == list(FILES)
    assert source.labels.shape == (6, 0)
    # "dog/4.jpg" is a PNG: what counts is the content.
    np.testing.assert_array_equal(source[4]["image"], picture(23, 30))
    np.testing.assert_array_equal(source[0]["image"], picture(25, 30))
    assert source.describe() == "6 images, no labels"


def test_labels_of_the_parent_folder(tree_of_images):
    source = FolderSource(tree_of_images, "parent")
    assert source.tree.levels == ("label",)
    assert source.tree.names == (("cat", "dog", "hound", "tabby"),)
    np.testing.assert_array_equal(source.labels[:, 0], [-1, 0, 3, 3, 1, 2])
    np.testing.assert_array_equal(source[3]["label"], [3])
    assert source.describe() == "6 images, labels: label (4)"


def test_labels_of_the_whole_path(tree_of_images):
    source = FolderSource(tree_of_images, "path")
    assert source.tree.levels == ("level0", "level1")
    assert source.tree.names == (("cat", "dog"), ("hound", "tabby"))
    np.testing.assert_array_equal(
        source.labels, [[-1, -1], [0, -1], [0, 1], [0, 1], [1, -1], [1, 0]]
    )
    with pytest.raises(ValueError, match="expected 'none', 'parent' or 'path'"):
        FolderSource(tree_of_images, "folder")


def test_unique_names_are_checked(tree_of_images):
    FolderSource(tree_of_images, "path", unique=True)
    (tree_of_images / "dog/tabby").mkdir()
    (tree_of_images / "dog/tabby/6.png").write_bytes(png(picture()))
    FolderSource(tree_of_images, "path")
    with pytest.raises(ValueError, match=r"level1 'tabby' .* 'cat' and 'dog'"):
        FolderSource(tree_of_images, "path", unique=True)


def test_content_id_is_of_the_content(tree_of_images, tmp_path):
    first = FolderSource(tree_of_images)
    moved = tmp_path / "elsewhere"
    shutil.copytree(tree_of_images, moved)
    for path in moved.rglob("*.png"):
        os.utime(path, (0, 0))
    again = FolderSource(moved)
    assert again.content_id == first.content_id
    assert repr(again) == repr(first)
    (moved / "cat/3.png").write_bytes(png(picture(40, 40)))
    assert FolderSource(moved).content_id != first.content_id
    shutil.copyfile(tree_of_images / "cat/3.png", moved / "cat/3.png")
    (moved / "dog/4.jpg").rename(moved / "dog/7.jpg")
    assert FolderSource(moved).content_id != first.content_id


def test_a_moved_border_between_name_and_size_changes_the_id(tmp_path):
    for name, size in (("a1.png", 2), ("a.png", 12)):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(bytes(size))
    one, two = (FolderSource(tmp_path / name) for name in ("a1.png", "a.png"))
    assert one.content_id != two.content_id


def test_unusual_entries_are_named_when_read(tree_of_images):
    odd = tree_of_images / "odd"
    odd.mkdir()
    (odd / "broken.jpg").symlink_to(odd / "nowhere")
    os.mkfifo(odd / "fifo.jpg")
    (odd / "empty.jpg").touch()
    (odd / "text.jpg").write_text("text")
    (odd / "dir.jpg").mkdir()
    (odd / "dir.jpg" / "inside.png").write_bytes(png(picture()))
    (odd / "link.png").symlink_to(tree_of_images / "0.png")
    (odd / ("n" * 250 + ".png")).write_bytes(png(picture()))
    (odd / "new\nline.png").write_bytes(png(picture()))
    source = FolderSource(tree_of_images, "parent")
    outcome = {}
    for i in range(len(source)):
        try:
            outcome[source.name(i)] = source[i]["image"].shape
        except BadExample as error:
            outcome[error.name] = error.reason
    reasons = {name: text for name, text in outcome.items() if isinstance(text, str)}
    assert reasons.keys() == {f"odd/{n}.jpg" for n in ("broken", "fifo", "empty", "text")}
    assert "No such file" in reasons["odd/broken.jpg"]
    assert "not a regular file" in reasons["odd/fifo.jpg"]
    assert outcome["odd/dir.jpg/inside.png"] == (24, 32, 3)
    assert outcome["odd/link.png"] == (25, 30, 3)
    assert "dir.jpg" in source.tree.names[0]


def test_names_that_are_no_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.png")).write_bytes(png(picture()))
    source = FolderSource(tmp_path, "parent")
    assert source[0]["image"].shape == (24, 32, 3)
    assert source.tree.names == (("caf\\xe9",),)
    source.tree.names[0][0].encode()
    assert len(source.content_id) == 32
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"")
    with pytest.raises(BadExample) as caught:
        FolderSource(tmp_path)[0]
    str(caught.value).encode()


def test_a_circle_of_links_is_not_followed(tree_of_images):
    (tree_of_images / "cat" / "again").symlink_to(tree_of_images)
    (tree_of_images / "linked").symlink_to(tree_of_images / "dog")
    source = FolderSource(tree_of_images)
    linked = ("linked/4.jpg", "linked/hound/5.png")
    assert source.files == (*FILES, *linked)


def test_a_file_deleted_or_replaced_after_listing_is_named(tree_of_images):
    source = FolderSource(tree_of_images)
    (tree_of_images / FILES[0]).unlink()
    (tree_of_images / FILES[1]).write_bytes(png(picture(50, 50)))
    with pytest.raises(BadExample, match=r"0\.png': No such file"):
        source[0]
    with pytest.raises(BadExample, match=r"3\.png': has changed"):
        source[1]


def test_a_file_that_appears_where_none_could_be_read(tmp_path):
    (tmp_path / "x.png").symlink_to(tmp_path / "later")
    source = FolderSource(tmp_path)
    (tmp_path / "later").write_bytes(png(picture()))
    assert source[0]["image"].shape == (24, 32, 3)


def test_no_images(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        FolderSource(tmp_path / "missing")
    (tmp_path / "class").mkdir()
    with pytest.raises(ValueError, match="no images below"):
        FolderSource(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="it has 1 files of other names"):
        FolderSource(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not a folder"):
        FolderSource(tmp_path / "file")


def test_folders_that_cannot_be_listed_are_named(tree_of_images, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("hound"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(ValueError, match=r"dog/hound' cannot be listed: Permission denied"):
        FolderSource(tree_of_images)


def test_other_files_are_mentioned(tree_of_images, caplog):
    from absl import logging

    logging.set_verbosity(logging.INFO)
    with caplog.at_level("INFO", logger="absl"):
        FolderSource(tree_of_images)
    assert "left out 1 files that are not named as images: 1 '.txt'" in caplog.text

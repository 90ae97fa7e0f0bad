import pathlib

import pytest
from corpus import picture, png


@pytest.fixture
def tree_of_images(tmp_path):
    """A folder of six images, two levels deep, with a text file among them."""
    root = tmp_path / "images"
    for i, name in enumerate(
        ("cat/tabby/1.png", "cat/tabby/2.PNG", "cat/3.png", "dog/4.jpg", "dog/hound/5.png", "0.png")
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(20 + i, 30)))
    (root / "cat" / "notes.txt").write_text("no image")
    return root


@pytest.fixture(scope="session")
def tfds_dir():
    """Where the tiny prepared TFDS data set is."""
    return str(pathlib.Path(__file__).parent / "fixtures" / "tfds")

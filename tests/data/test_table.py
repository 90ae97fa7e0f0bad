import numpy as np
import pytest
from corpus import picture, png

from jaxcl.data import BadExample, TableSource


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "sub/b,c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(picture()))
    return tmp_path


def table(folder, text, encoding="utf-8"):
    path = folder / "table.csv"
    path.write_bytes(text.encode(encoding))
    return path


TEXT = 'genus,path,species\ncanis,a.png,lupus\nfelis,"sub/b,c.png",\n"=1+1",missing.png,"x ""y"""\n'


def test_rows_and_labels(folder):
    source = TableSource(table(folder, TEXT), "path", ("genus", "species"))
    assert source.files == ("a.png", "sub/b,c.png", "missing.png")
    assert source.tree.levels == ("genus", "species")
    # Cells are text and nothing else, formulas too.
    assert source.tree.names == (("=1+1", "canis", "felis"), ("lupus", 'x "y"'))
    np.testing.assert_array_equal(source.labels, [[1, 0], [2, -1], [0, 1]])
    np.testing.assert_array_equal(source[1]["image"], picture())
    np.testing.assert_array_equal(source[1]["label"], [2, -1])
    with pytest.raises(BadExample, match=r"missing\.png': No such file"):
        source[2]


def test_no_label_columns(folder):
    source = TableSource(table(folder, TEXT))
    assert source.labels.shape == (3, 0)


def test_byte_order_mark_and_line_ends(folder):
    plain = TableSource(table(folder, TEXT), "path", ("genus",))
    marked = TableSource(table(folder, TEXT.replace("\n", "\r\n"), "utf-8-sig"), "path", ("genus",))
    assert marked.files == plain.files
    assert marked.content_id == plain.content_id


def test_absolute_paths(folder):
    source = TableSource(table(folder, f"path\n{folder / 'a.png'}\n"))
    assert source[0]["image"].shape == (24, 32, 3)


def test_content_id_is_of_files_and_labels(folder):
    def content_id(text, keys=("genus", "species")):
        return TableSource(table(folder, text), "path", keys).content_id

    first = content_id(TEXT)
    assert content_id(TEXT) == first
    assert content_id(TEXT.replace("lupus", "aureus")) != first
    assert content_id(TEXT, ("genus",)) != first
    (folder / "a.png").write_bytes(png(picture(9, 9)))
    assert content_id(TEXT) != first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must have one column 'path' .*\[\]"),
        ("file,genus\na.png,x\n", "must have one column 'path'"),
        ("path,genus,genus\na.png,x,y\n", "must have one column 'genus'"),
        ("path,genus\n", "lists no images"),
        ("path,genus\na.png,x\nb.png\n", "line 3 .* has 1 cells, but the first line has 2"),
        ("path,genus\na.png,x,y\n", "line 2 .* has 3 cells"),
        ("path,genus\n,x\n", "line 2 .* names no image"),
        ('path,genus\n"a.png,x\n', "cannot be read: unexpected end"),
    ],
)
def test_malformed_tables(folder, text, message):
    with pytest.raises(ValueError, match=message):
        TableSource(table(folder, text), "path", ("genus",))


def test_tables_that_cannot_be_read(folder):
    with pytest.raises(ValueError, match="cannot be read"):
        TableSource(folder / "missing.csv")
    with pytest.raises(ValueError, match="cannot be read"):
        TableSource(folder)
    with pytest.raises(ValueError, match="cannot be read"):
        TableSource(table(folder, "path\nü.png\n", "latin-1"))


def test_unique_names_are_checked(folder):
    text = "path,genus,species\na.png,canis,lupus\na.png,felis,lupus\n"
    with pytest.raises(ValueError, match="species 'lupus' stands under two parents"):
        TableSource(table(folder, text), "path", ("genus", "species"), unique=True)

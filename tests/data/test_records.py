import json

import numpy as np
import pytest
from corpus import picture, png

from jaxcl.data import BadExample, LabelTree, RecordsSource, write_records
from jaxcl.data.records import pack_record, read_tree, unpack_record

TREE = LabelTree(("kind", "sort"), (("a", "b"), ("x", "y", "z")))
LABELS = [[0, 0], [1, 2], [0, 1], [-1, -1], [1, -1], [0, 2], [1, 0]]


def examples():
    for i, label in enumerate(LABELS):
        yield png(picture(20 + i, 25)), label


@pytest.fixture
def folder(tmp_path):
    write_records(tmp_path / "data", examples(), TREE, shard_size=3)
    return tmp_path / "data"


def test_round_trip(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"data-0000{i}-of-00003.array_record" for i in range(3)),
        "dataset.json",
        "labels.npy",
    ]
    source = RecordsSource(folder)
    assert len(source) == 7
    assert source.tree == TREE == read_tree(folder)
    np.testing.assert_array_equal(source.labels, LABELS)
    for i in range(7):
        np.testing.assert_array_equal(source[i]["image"], picture(20 + i, 25))
        np.testing.assert_array_equal(source[i]["label"], LABELS[i])
    assert source.place(3) == f"{folder}, record 3"
    assert RecordsSource(folder, channels=1)[0]["image"].shape == (20, 25, 1)


def test_layout_of_a_record():
    record = pack_record(b"image", (1, -1))
    assert record == b"\x02\0\0\0" + b"\x01\0\0\0" + b"\xff\xff\xff\xff" + b"image"
    image, label = unpack_record(record)
    assert image == b"image"
    np.testing.assert_array_equal(label, [1, -1])
    assert unpack_record(pack_record(b"", ()))[1].shape == (0,)
    for short in (b"", b"\x02\0\0\0\x01\0\0\0"):
        with pytest.raises(ValueError, match="a record of"):
            unpack_record(short)


def test_content_id_is_of_the_content(folder, tmp_path):
    write_records(tmp_path / "b", examples(), TREE, shard_size=2)
    assert RecordsSource(tmp_path / "b").content_id == RecordsSource(folder).content_id
    write_records(tmp_path / "c", list(examples())[::-1], TREE)
    assert RecordsSource(tmp_path / "c").content_id != RecordsSource(folder).content_id


def test_writer_refuses(folder, tmp_path):
    with pytest.raises(ValueError, match="holds records already"):
        write_records(folder, examples(), TREE)
    with pytest.raises(ValueError, match="no examples"):
        write_records(tmp_path / "b", [], TREE)
    with pytest.raises(ValueError, match="label 5 of example 0"):
        write_records(tmp_path / "c", [(b"", (5, 0))], TREE)
    with pytest.raises(ValueError, match="cannot be read"):  # nothing looks whole
        RecordsSource(tmp_path / "c")


def test_missing_truncated_and_doubled_shards(folder):
    shard = folder / "data-00001-of-00003.array_record"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1000])
    with pytest.raises(ValueError, match=r"data-00001-of-00003.*expected \d+ bytes, found \d+"):
        RecordsSource(folder)
    shard.unlink()
    with pytest.raises(ValueError, match="found no such file"):
        RecordsSource(folder)
    # Another shard in its place has the same size, but not the same labels.
    shard.write_bytes((folder / "data-00000-of-00003.array_record").read_bytes())
    source = RecordsSource(folder)
    source[0]
    with pytest.raises(BadExample, match=r"'record 4': has the labels .* shards are mixed"):
        source[4]


def test_damaged_records_are_named(folder):
    shard = folder / "data-00000-of-00003.array_record"
    data = bytearray(shard.read_bytes())
    start = data.index(b"IHDR")
    data[start : start + 300] = bytes(300)
    shard.write_bytes(data)
    source = RecordsSource(folder)
    with pytest.raises(BadExample, match="'record 0'"):
        source[0]
    source[3]


def test_damaged_manifest(folder):
    path = folder / "dataset.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"format": "other"}))
    with pytest.raises(ValueError, match="not of the format 'jaxcl-records-1'"):
        RecordsSource(folder)
    manifest["shards"][0]["records"] = 4
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="should have 8 records"):
        RecordsSource(folder)
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        RecordsSource(folder)


def test_labels_are_never_unpickled(folder):
    np.save(folder / "labels.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be opened"):
        RecordsSource(folder)

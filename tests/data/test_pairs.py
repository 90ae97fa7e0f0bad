"""Tables of pairs and triples, and the batches that are made of them."""

import numpy as np
import pytest
from corpus import picture, png

from jaxcl import data
from jaxcl.data import ArraySource, DataConfig, FolderSource, PairSampler, read_pairs
from jaxcl.data.samplers import ColumnSampler, Uniform
from jaxcl.views import ViewsConfig, build_program, presets

NAMES = ("a.png", "b.png", "sub/c.png", "d.png")
PAIRS = "a,similarity,b\na.png,0.5,b.png\nsub/c.png,-1e-1,a.png\nb.png,3,d.png\nd.png,0.5,a.png\n"
RESPECTS = "a,similarity:style,b,similarity:colour,by\na.png,0.5,b.png,,x\nd.png,1,a.png,-2,y\nb.png,,d.png,3,z\n"
TRIPLES = "anchor,positive,negative,by\na.png,b.png,d.png,x\nd.png,sub/c.png,a.png,y\n"


def source(names=NAMES, count=0):
    count = count or len(names)
    images = np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)
    return ArraySource(images, np.arange(count), names=names)


def write(folder, text, name="pairs.csv"):
    (folder / name).write_text(text)
    return folder / name


def test_pairs_and_triples(tmp_path):
    table = read_pairs(write(tmp_path, PAIRS), source())
    np.testing.assert_array_equal(table.rows, [[0, 1], [2, 0], [1, 3], [3, 0]])
    np.testing.assert_allclose(table.similarity, [0.5, -0.1, 3, 0.5])
    assert (table.kind, table.size, len(table), table.images) == ("pair", 2, 4, 4)
    triples = read_pairs(write(tmp_path, TRIPLES), source())
    np.testing.assert_array_equal(triples.rows, [[0, 1, 3], [3, 2, 0]])
    assert triples.similarity is None
    assert (triples.kind, triples.size, len(triples)) == ("triple", 3, 2)
    for unused in ("similarity:my score", "a,similarity,similarity:x"):
        cells = "," * unused.count(",")
        more = (
            TRIPLES.replace(",by", f",{unused}")
            .replace(",x", cells + ",x")
            .replace(",y", cells + ",y")
        )
        same = read_pairs(write(tmp_path, more), source())
        assert same.content_id == triples.content_id


def test_pairs_in_several_respects(tmp_path):
    table = read_pairs(write(tmp_path, RESPECTS), source())
    assert (table.kind, table.size, table.respects) == ("pair", 2, ("style", "colour"))
    np.testing.assert_array_equal(table.rows, [[0, 1], [3, 0], [1, 3]])
    np.testing.assert_array_equal(table.similarity, [[0.5, np.nan], [1, -2], [np.nan, 3]])
    parts = table.by_respect
    assert list(parts) == ["style", "colour"]
    np.testing.assert_array_equal(parts["style"].rows, [[0, 1], [3, 0]])
    np.testing.assert_array_equal(parts["style"].similarity, [0.5, 1])
    np.testing.assert_array_equal(parts["colour"].similarity, [-2, 3])
    assert parts["colour"].respects == ()
    other = write(tmp_path, RESPECTS.replace(":colour", ":color"), "other.csv")
    assert read_pairs(other, source()).content_id != table.content_id
    plain = read_pairs(write(tmp_path, PAIRS), source())
    assert (plain.respects, plain.by_respect) == ((), {"": plain})
    triples = read_pairs(write(tmp_path, TRIPLES.replace(",by", ",similarity:x")), source())
    assert (triples.respects, triples.by_respect) == ((), {"": triples})

    table = read_pairs(write(tmp_path, RESPECTS), source())
    sampler = PairSampler(table, 4, seed=1)
    assert "3 pairs of 3 images, in style and colour; 1 images are in none" in sampler.describe()
    index, columns = sampler.indices(0), sampler.columns(0)
    assert set(columns) == {"pair/style", "pair/colour"}
    known = {tuple(row): values for row, values in zip(table.rows, table.similarity, strict=True)}
    for i in (0, 0, 2, 2):
        style, colour = known[tuple(index[i : i + 2])]
        np.testing.assert_array_equal(columns["pair/style"][i : i + 2], [style, style])
        np.testing.assert_array_equal(columns["pair/colour"][i : i + 2], [colour, colour])
    settings = DataConfig(image_size=2, threads=1)
    batch = next(data.train_batches(source(), sampler, settings, 0, 1))
    np.testing.assert_array_equal(batch["pair/style"], columns["pair/style"])
    assert batch["pair/colour"].dtype == np.float32


def test_content_id_is_of_the_rows_and_the_images(tmp_path):
    first = read_pairs(write(tmp_path, PAIRS), source()).content_id
    assert read_pairs(write(tmp_path, PAIRS, "moved.csv"), source()).content_id == first
    assert read_pairs(write(tmp_path, PAIRS.replace("3,d", "4,d")), source()).content_id != first
    assert read_pairs(write(tmp_path, PAIRS.replace("3,d", "3,a")), source()).content_id != first
    other = ArraySource(source().images + np.uint8(1), np.arange(4), names=NAMES)
    assert read_pairs(write(tmp_path, PAIRS), other).content_id != first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must have the columns a, b, similarity, or anchor, positive, negative in its first line"),
        ("a,b,score\na.png,b.png,1\n", r"must have the columns .* which is \['a', 'b', 'score'\]"),
        ("a,b,b,similarity\na.png,b.png,b.png,1\n", "must have the columns"),
        ("a,b,similarity\n", "lists no pairs"),
        ("anchor,positive,negative\n", "lists no pairs"),
        ("a,b,similarity\na.png,b.png\n", "line 2 .* has 2 cells, but the first line has 3"),
        ("a,b,similarity\na.png,b.png,1\na.png,sub/d.png,1\n",
         "line 3 .*: b is 'sub/d.png', which is none of the 4 images of this split; did you mean 'sub/c.png'"),
        ("a,b,similarity\n,b.png,1\n", "line 2 .*: a names no image"),
        ("a,b,similarity\na.png,b.png,high\n", "line 2 .*: the similarity is 'high', expected a number"),
        ("a,b,similarity\na.png,b.png,\n", "the similarity is '', expected a number"),
        ("a,b,similarity\na.png,b.png,nan\n", "the similarity is 'nan', expected a number"),
        ("a,b,similarity\na.png,b.png,inf\n", "the similarity is 'inf', expected a number"),
        ("a,b,similarity\na.png,b.png,-1e300\n", "the similarity is '-1e300', expected a number that float32 can hold"),
        ("anchor,positive,negative\na.png,b.png,b.png\n", "line 2 .*: positive and negative are the same image, 'b.png'"),
        ("anchor,positive,negative\na.png,b.png,d.png\na.png,a.png,b.png\n",
         "line 3 .*: anchor and positive are the same image, 'a.png'"),
        ("anchor,positive,negative\na.png,b.png,a.png\n", "line 2 .*: anchor and negative are the same image, 'a.png'"),
        ("similarity,a,b\n1,a.png,b.png\n1,d.png,d.png\n", "line 3 .*: a and b are the same image, 'd.png'"),
        ("a,b,similarity:x,similarity\na.png,b.png,1,1\n",
         "has a column 'similarity' and others of respects, such as 'similarity:x': give it a respect"),
        ("a,b,similarity:\na.png,b.png,1\n", "has a column 'similarity:': expected a name of letters"),
        ("a,b,similarity:my style\na.png,b.png,1\n", "has a column 'similarity:my style': expected a name"),
        ("a,b,similarity:x,similarity:x\na.png,b.png,1,1\n", "must have the columns a, b, similarity:x, similarity:x, or"),
        ("a,similarity:x\na.png,1\n", "must have the columns a, b, similarity:x, or anchor"),
        ("a,b,similarity:x,similarity:y\na.png,b.png,1,0\nb.png,d.png,1,no\n", "line 3 .*: the similarity:y is 'no', expected a"),
        ("a,b,similarity:x,similarity:y\na.png,b.png,1,0\nb.png,d.png,,\n", "line 3 .*: nothing is known of this pair"),
        ("a,b,similarity:x,similarity:y\na.png,b.png,1,\n", "has no number in its column 'similarity:y'"),
        ("anchor,positive,negative\na.png,x,zzz\n", "positive is 'x'.*they are called like 'a.png'"),
    ],
)  # fmt: skip
def test_bad_tables_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_pairs(write(tmp_path, text), source())


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"missing\.csv' cannot be read"):
        read_pairs(tmp_path / "missing.csv", source())


def test_names_that_mean_several_images(tmp_path):
    twice = source(("a.png", "b.png", "b.png", "d.png"))
    with pytest.raises(ValueError, match=r"b is 'b\.png', and several images are called so"):
        read_pairs(write(tmp_path, PAIRS), twice)
    table = read_pairs(write(tmp_path, "a,b,similarity\na.png,d.png,1\n"), twice)
    np.testing.assert_array_equal(table.rows, [[0, 3]])


def planted(tmp_path, rows=10, triples=False, seed=0):
    """A table of random rows of eight images called 0 to 7, and what it says."""
    rng = np.random.default_rng(seed)
    names = tuple(map(str, range(8)))
    if triples:
        given = [tuple(rng.permutation(8)[:3].tolist()) for _ in range(rows)]
        text = "anchor,positive,negative\n" + "".join(f"{a},{p},{n}\n" for a, p, n in given)
    else:
        given = [(*rng.permutation(8)[:2].tolist(), i / 4) for i in range(rows)]
        text = "a,b,similarity\n" + "".join(f"{a},{b},{s}\n" for a, b, s in given)
    return read_pairs(write(tmp_path, text), source(names)), given


@pytest.mark.parametrize("triples", [False, True])
def test_an_epoch_has_each_row_once(tmp_path, triples):
    table, given = planted(tmp_path, triples=triples)
    size = table.size
    sampler = PairSampler(table, 3 * size, seed=5)
    assert sampler.steps_per_epoch == 3
    for epoch in range(2):
        seen = []
        for step in range(3 * epoch, 3 * epoch + 3):
            index, columns = sampler.indices(step), sampler.columns(step)
            assert index.shape == (3 * size,)
            for i in range(0, 3 * size, size):
                row = tuple(index[i : i + size].tolist())
                if triples:
                    np.testing.assert_array_equal(columns["triple"][i : i + size], 1)
                else:
                    assert columns["pair"][i] == columns["pair"][i + 1]
                    row += (float(columns["pair"][i]),)
                seen.append(row)
        assert len(set(seen)) == 9
        assert set(seen) <= set(given)
    assert not np.array_equal(sampler.indices(0), sampler.indices(3))
    again = PairSampler(table, 3 * size, seed=5)
    np.testing.assert_array_equal(again.indices(4), sampler.indices(4))
    assert sampler.content_id == table.content_id
    assert f"10 {table.kind}s of" in sampler.describe()
    assert f"leaves out 1 {table.kind}s" in sampler.describe()


def test_batches_that_cannot_be(tmp_path):
    table, _ = planted(tmp_path)
    with pytest.raises(ValueError, match="batch_size=7: a batch of pairs needs a multiple of 2"):
        PairSampler(table, 7)
    with pytest.raises(
        ValueError, match=r"batch of 11 pairs is larger .* has 10; set batch_size to 20"
    ):
        PairSampler(table, 22)


def test_the_configured_table_makes_the_batches(tmp_path):
    planted(tmp_path)
    names = tuple(map(str, range(8)))
    config = DataConfig(pairs={"train": str(tmp_path / "pairs.csv"), "val": ""})
    sampler = data.make_sampler(config, source(names), 4, seed=1)
    assert isinstance(sampler, PairSampler)
    assert isinstance(sampler, ColumnSampler)
    assert not isinstance(Uniform(8, 4), ColumnSampler)
    assert data.load_pairs(config, "val", source(names)) is None
    assert data.load_pairs(config, "test", source(names)) is None
    assert isinstance(data.make_sampler(DataConfig(), source(names), 4), Uniform)
    with pytest.raises(ValueError, match="set sampler to 'uniform'"):
        DataConfig(pairs={"train": "x.csv"}, sampler="m_per_class")


@pytest.mark.parametrize("processes", [1, 2])
def test_columns_come_with_the_rows_of_each_process(tmp_path, processes):
    table, given = planted(tmp_path)
    images = source(tuple(map(str, range(8))))
    sampler = PairSampler(table, 8, seed=3)
    settings = DataConfig(image_size=2, threads=1)
    found = []
    for process in range(processes):
        batches = data.train_batches(
            images, sampler, settings, 1, 3, process_index=process, process_count=processes
        )
        for batch in batches:
            assert batch["pair"].dtype == np.float32
            assert len(batch["pair"]) == len(batch["image"]) == 8 // processes
            np.testing.assert_array_equal(batch["image"], images.images[batch["index"]])
            found += [
                (*batch["index"][i : i + 2].tolist(), float(batch["pair"][i]))
                for i in range(0, len(batch["pair"]), 2)
            ]
    assert len(found) == 8
    assert set(found) <= set(given)


@pytest.mark.parametrize("crop", ["device", "host"])
def test_a_pair_with_an_unreadable_image_is_not_known(tmp_path, crop):
    """Another image takes its place; what was known of the pair is not about that one."""
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(picture(9, 9)) if i != 2 else b"no image")
    images = FolderSource(tmp_path, "none")
    text = "a,b,similarity\n0.png,1.png,1\n1.png,2.png,2\n3.png,0.png,3\n2.png,3.png,4\n"
    sampler = PairSampler(read_pairs(write(tmp_path, text), images), 8, seed=0)
    settings = DataConfig(image_size=9, threads=1, on_bad="skip", crop=crop)
    views = build_program(ViewsConfig(**presets.crop_flip(8, views=1)))
    batch = next(data.train_batches(images, sampler, settings, 0, 1, views=views))
    known = batch["pair"].reshape(4, 2)
    wanted = sampler.columns(0)["pair"].reshape(4, 2)
    bad = np.isin(wanted[:, 0], (2, 4))
    np.testing.assert_array_equal(known[~bad], wanted[~bad])
    assert np.isnan(known[bad]).any(1).all()
    assert np.isnan(known[bad]).sum() == 2  # the rows of the image itself

import contextlib
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from corpus import picture, png
from PIL import Image

from jaxcl.data import (
    ArraySource,
    BadExample,
    DataConfig,
    FolderSource,
    Skipped,
    Uniform,
    arrays,
    eval_batches,
    fit,
    image_shape,
    train_batches,
)
from jaxcl.views import Crop, EvalView, View, ViewProgram

SIZE = 16


def config(**options):
    return DataConfig(name="folder", path="unused", image_size=SIZE, **options)


@pytest.fixture
def files(tmp_path):
    """Ten images of different sizes in two classes."""
    for i in range(10):
        path = tmp_path / "files" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(np.roll(picture(18 + i, 30 - i), 5 * i, axis=1)))
    return FolderSource(tmp_path / "files", "parent")


@pytest.fixture
def memory():
    images = np.random.default_rng(0).integers(0, 256, (10, SIZE, SIZE, 3), dtype=np.uint8)
    return ArraySource(images, np.arange(10) % 3)


def spoil(source, *rows):
    for row in rows:
        (source.folder / source.files[row]).write_bytes(b"x")
    return FolderSource(source.folder, "parent")


def assert_same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_batches_have_the_examples_that_the_sampler_names(files):
    sampler = Uniform(10, 4, seed=3)
    batches = list(train_batches(files, sampler, config(), 0, 5))
    assert len(batches) == 5
    for step, batch in enumerate(batches):
        rows = sampler.indices(step)
        np.testing.assert_array_equal(batch["index"], rows)
        np.testing.assert_array_equal(batch["label"], files.labels[rows])
        np.testing.assert_array_equal(batch["skipped"], [-1] * 4)
        for image, row in zip(batch["image"], rows, strict=True):
            np.testing.assert_array_equal(image, fit(files[row]["image"], SIZE, SIZE, 3))
        assert {key: value.dtype for key, value in batch.items()} == {
            "image": np.uint8,
            "label": np.int32,
            "index": np.int32,
            "skipped": np.int32,
        }


def test_gathering_from_memory_equals_reading_one_by_one(memory):
    sampler = Uniform(10, 4, seed=3)
    fast = list(train_batches(memory, sampler, config(), 0, 4))
    for step, batch in enumerate(fast):
        rows = sampler.indices(step)
        np.testing.assert_array_equal(batch["image"], [memory[row]["image"] for row in rows])
        np.testing.assert_array_equal(batch["label"], [memory[row]["label"] for row in rows])
        np.testing.assert_array_equal(batch["index"], rows)
    # What a batch holds is its own: changing it leaves the source alone.
    fast[0]["image"][:] = 0
    assert memory.images[fast[0]["index"]].any()


def test_grey_in_memory_becomes_colour_and_back(memory):
    grey = ArraySource(memory.images[..., :1])
    batch = next(train_batches(grey, Uniform(10, 4), config(), 0, 1))
    np.testing.assert_array_equal(batch["image"], np.repeat(grey.images[batch["index"]], 3, -1))
    batch = next(train_batches(memory, Uniform(10, 4), config(channels=1), 0, 1))
    luma = memory.images[batch["index"]] @ np.array([[0.299], [0.587], [0.114]])
    assert np.abs(batch["image"] - luma).max() <= 1


def test_images_in_memory_of_another_size(memory):
    small = ArraySource(memory.images[:, :10, :12])
    batch = next(train_batches(small, Uniform(10, 4), config(), 0, 1))
    expected = [fit(small.images[i], SIZE, SIZE, 3) for i in batch["index"]]
    np.testing.assert_array_equal(batch["image"], expected)
    keep = DataConfig(image_size=0)
    batch = next(train_batches(small, Uniform(10, 4), keep, 0, 1))
    np.testing.assert_array_equal(batch["image"], small.images[batch["index"]])


def test_image_shape(files, memory):
    assert image_shape(files, config(channels=1)) == (SIZE, SIZE, 1)
    assert image_shape(memory, DataConfig(image_size=0)) == (SIZE, SIZE, 3)
    with pytest.raises(ValueError, match=r"data\.image_size=0 .* set data\.image_size"):
        image_shape(files, DataConfig(image_size=0))


def test_evaluation_leaves_images_in_memory_to_the_view(memory):
    for view in (EvalView(8), EvalView(SIZE), EvalView(64)):
        assert image_shape(memory, config(), view) == (SIZE, SIZE, 3)
        (batch,) = eval_batches(memory, 10, config(), view)
        np.testing.assert_array_equal(batch["image"], memory.images)
    # Of another size than that of the settings they are read like files.
    small = ArraySource(memory.images[:, :10, :12])
    assert image_shape(small, config(), EvalView(64)) == (73, 73, 3)
    assert image_shape(small, DataConfig(image_size=0), EvalView(64)) == (10, 12, 3)


@pytest.mark.parametrize(("size", "batch"), [(16, 20), (32, 32), (56, 64), (64, 73), (224, 256)])
def test_evaluation_reads_what_the_crop_of_the_view_needs(files, size, batch):
    assert image_shape(files, DataConfig(image_size=20), EvalView(size)) == (batch, batch, 3)
    assert image_shape(files, DataConfig(image_size=300), EvalView(size)) == (300, 300, 3)


@pytest.mark.parametrize("shape", [(300, 400), (500, 256), (90, 80)])
@pytest.mark.parametrize("size", [56, 64])
def test_an_evaluated_image_is_resized_once(shape, size, tmp_path):
    """From the file to the network: Pillow's crop of 87.5 % of the original, and its bicubic resize."""
    rng = np.random.default_rng(0)
    original = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    (tmp_path / "noise.png").write_bytes(png(original))
    view = EvalView(size)
    (batch,) = eval_batches(FolderSource(tmp_path), 1, DataConfig(image_size=size), view)
    (made,) = np.asarray(view(batch["image"]))
    side = 0.875 * min(shape)
    left, top = (shape[1] - side) / 2, (shape[0] - side) / 2
    expected = Image.fromarray(original).resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    expected = np.asarray(expected, np.float32) / 255

    def gradient(image):
        return np.abs(np.diff(image, axis=0)).mean() + np.abs(np.diff(image, axis=1)).mean()

    assert gradient(made) == pytest.approx(gradient(expected), rel=0.03)
    if size / 0.875 % 1 == 0:  # the borders of the crop are then those of pixels
        np.testing.assert_allclose(made, expected, atol=1.01 / 255)


def test_a_resumed_run_goes_on_where_it_was(files):
    sampler = Uniform(10, 4, seed=3)
    whole = list(train_batches(files, sampler, config(), 0, 7))
    assert_same(whole[4:], list(train_batches(files, Uniform(10, 4, seed=3), config(), 4, 7)))
    assert list(train_batches(files, sampler, config(), 7, 7)) == []


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("crop", ["device", "host"])
def test_processes_have_contiguous_rows_of_the_global_batch(files, processes, crop):
    options = {"views": PROGRAM, "crop_seed": 5}
    sampler = Uniform(10, 8, seed=1)
    whole = list(train_batches(files, sampler, config(crop=crop), 0, 3, **options))
    parts = [
        list(
            train_batches(
                files,
                sampler,
                config(crop=crop),
                0,
                3,
                process_index=p,
                process_count=processes,
                **options,
            )
        )
        for p in range(processes)
    ]
    joined = [
        {key: np.concatenate([part[step][key] for part in parts]) for key in whole[step]}
        for step in range(3)
    ]
    assert_same(joined, whole)


PROGRAM = ViewProgram((("crop", Crop(size=12)),), (View(), View()))


def test_crops_on_the_host(files):
    sampler = Uniform(10, 4, seed=1)
    batches = list(
        train_batches(files, sampler, config(crop="host"), 2, 4, views=PROGRAM, crop_seed=5)
    )
    for batch in batches:
        assert batch["image"].shape == (4, 2, 12, 12, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["crop/on"].shape == (4, 2)
        assert batch["crop/box"].shape == (4, 2, 4)
        assert batch["crop/on"].all()
        for row in range(4):
            image = Image.fromarray(files[batch["index"][row]]["image"])
            for view in range(2):
                top, left, h, w = batch["crop/box"][row, view].tolist()
                expected = image.crop((left, top, left + w, top + h)).resize((12, 12), 3)
                np.testing.assert_array_equal(batch["image"][row, view], np.asarray(expected))
    assert not np.array_equal(batches[0]["crop/box"], batches[1]["crop/box"])
    with pytest.raises(ValueError, match="needs the view program"):
        train_batches(files, sampler, config(crop="host"))


def test_crops_on_the_host_are_taken_by_the_program(files):
    import jax

    batch = next(train_batches(files, Uniform(10, 4), config(crop="host"), 0, 1, views=PROGRAM))
    keys = jax.random.split(jax.random.key(0), 4)
    drawn = {k.removeprefix("crop/"): v for k, v in batch.items() if k.startswith("crop/")}
    views = PROGRAM(keys, batch["image"], drawn)
    np.testing.assert_allclose(views.images, batch["image"] / 255, atol=1e-7)
    np.testing.assert_array_equal(views.drawn["crop"]["box"], batch["crop/box"])


def test_bad_examples_stop_the_run_with_their_name(files):
    bad = spoil(files, 3)
    with pytest.raises(BadExample, match=r"b/1\.png|a/6\.png") as caught:
        list(train_batches(bad, Uniform(10, 5), config(), 0, 2))
    assert caught.value.name == bad.files[3]
    with pytest.raises(BadExample, match="not an image"):
        list(eval_batches(bad, 4, config()))


@pytest.mark.parametrize("crop", ["device", "host"])
def test_bad_examples_are_replaced_by_the_next_good_one(files, crop):
    bad = spoil(files, 3, 4, 9)
    substitutes = {3: 5, 4: 5, 9: 0}
    sampler = Uniform(10, 5, seed=2)
    setting = config(on_bad="skip", crop=crop)
    batches = list(train_batches(bad, sampler, setting, 0, 4, views=PROGRAM))
    said = []
    skipped = Skipped(said.append)
    assert sum(skipped.count(batch, bad) for batch in batches) == 6
    for step, batch in enumerate(batches):
        wanted = sampler.indices(step).tolist()
        np.testing.assert_array_equal(batch["index"], [substitutes.get(i, i) for i in wanted])
        np.testing.assert_array_equal(batch["label"], bad.labels[batch["index"]])
        np.testing.assert_array_equal(
            batch["skipped"], [i if i in substitutes else -1 for i in wanted]
        )
    assert len(said) == len(substitutes)
    text = " ".join(said)
    assert all(f"{bad.place(i)!r}: not an image" in text for i in substitutes)
    # The stream is the same for a run that is resumed in the middle.
    assert_same(batches[2:], list(train_batches(bad, sampler, setting, 2, 4, views=PROGRAM)))


def test_all_bad(files):
    bad = spoil(files, *range(10))
    with pytest.raises(BadExample, match="nor can any of the 9 examples after it be read"):
        next(train_batches(bad, Uniform(10, 5), config(on_bad="skip")))


def test_arrays_leaves_the_notes_behind(files):
    batch = next(train_batches(files, Uniform(10, 5), config()))
    assert arrays(batch).keys() == {"image", "label", "index"}


@pytest.mark.parametrize("kind", ["files", "memory"])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 10, 16])
def test_evaluation_has_every_example_once(kind, batch_size, request):
    source = request.getfixturevalue(kind)
    batches = list(eval_batches(source, batch_size, config()))
    assert len(batches) == -(-10 // batch_size)
    for batch in batches:
        assert all(len(value) == batch_size for value in batch.values())
        assert (batch["label"][~batch["mask"]] == -1).all()
        assert not batch["image"][~batch["mask"]].any()
    index, label, image = (
        np.concatenate([batch[key][batch["mask"]] for batch in batches])
        for key in ("index", "label", "image")
    )
    np.testing.assert_array_equal(index, np.arange(10))
    np.testing.assert_array_equal(label, source.labels)
    np.testing.assert_array_equal(
        image, [fit(source[i]["image"], SIZE, SIZE, 3) for i in range(10)]
    )


@pytest.mark.parametrize("batch_size", [4, 6])
def test_evaluation_over_processes(files, batch_size):
    """A batch that does not divide is rounded up."""
    whole = list(eval_batches(files, 6, config()))
    parts = [
        list(eval_batches(files, batch_size, config(), process_index=p, process_count=3))
        for p in range(3)
    ]
    joined = [
        {key: np.concatenate([part[i][key] for part in parts]) for key in whole[i]}
        for i in range(2)
    ]
    assert_same(joined, whole)


def test_evaluation_masks_bad_examples(files):
    bad = spoil(files, 3, 9)
    batches = list(eval_batches(bad, 4, config(on_bad="skip")))
    mask = np.concatenate([batch["mask"] for batch in batches])
    np.testing.assert_array_equal(np.flatnonzero(mask), [0, 1, 2, 4, 5, 6, 7, 8])
    skipped = np.concatenate([batch["skipped"] for batch in batches])
    np.testing.assert_array_equal(skipped[skipped >= 0], [3, 9])


def test_batches_that_do_not_divide():
    source = ArraySource(np.zeros((10, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="batch of 5 cannot be divided by 2 processes"):
        train_batches(source, Uniform(10, 5), DataConfig(), process_count=2)
    with pytest.raises(ValueError, match="batches of 0 examples: expected 1 or more"):
        eval_batches(source, 0, DataConfig())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("prefetch", [1, 5])
def test_threads_change_nothing(files, threads, prefetch):
    expected = list(train_batches(files, Uniform(10, 4, 3), config(), 0, 6))
    setting = config(threads=threads, prefetch=prefetch)
    assert_same(list(train_batches(files, Uniform(10, 4, 3), setting, 0, 6)), expected)


def test_no_thread_is_left(files):
    before = set(threading.enumerate())
    batches = train_batches(files, Uniform(10, 4), config())
    next(batches)
    batches.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
        assert not thread.is_alive(), thread


def test_workers_change_nothing(files):
    """Processes: none, one, two; on bad examples and crops as well, which they must agree on."""
    bad = spoil(files, 3)
    sampler = Uniform(10, 4, seed=3)
    expected = None
    for workers in (0, 1, 2):
        setting = config(workers=workers, on_bad="skip", crop="host")
        found = list(train_batches(bad, sampler, setting, 1, 6, views=PROGRAM, crop_seed=1))
        expected = expected or found
        assert_same(found, expected)


SIGNALLED = """
import os, signal, sys, threading, time

from jaxcl.data import DataConfig, FolderSource, Uniform, train_batches

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)


def interrupt():
    while True:
        os.killpg(0, signal.SIGINT)
        os.killpg(0, signal.SIGTERM)
        time.sleep(0.02)


threading.Thread(target=interrupt, daemon=True).start()
config = DataConfig(name="folder", path="unused", image_size=16, workers=2, prefetch=1)
batches = train_batches(FolderSource(sys.argv[1]), Uniform(10, 4), config)
for _ in range(30):
    next(batches)
print("30 batches", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_outlive_the_signals_of_their_group_but_not_the_run(files):
    """Ctrl-C of a terminal reaches them too, from their first moment on; nobody tells them of a SIGKILL."""
    process = subprocess.Popen(
        [sys.executable, "-c", SIGNALLED, str(files.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        # The end of the output comes with the end of the last process that could write it.
        output, _ = process.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, output
    assert "30 batches" in output


def test_a_worker_names_the_bad_example(files):
    bad = spoil(files, 3)
    with pytest.raises(BadExample) as caught:
        list(train_batches(bad, Uniform(10, 5), config(workers=1), 0, 2))
    assert caught.value.name == bad.files[3]
    assert "not an image" in caught.value.reason

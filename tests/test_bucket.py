"""A run whose workdir is a bucket: what it leaves, that it goes on bit for bit, and that damage is found."""

import bucket
import numpy as np
import pytest
from etils import epath
from test_train import STEPS, leaves, rows, tiny

from jaxcl import checkpoint, data, train
from jaxcl import config as config_lib
from jaxcl.data import pipeline, skipped


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def objects(patch):
    with bucket.served(patch) as objects:
        yield objects


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return config_lib.from_dict(tiny(tmp_path_factory.mktemp("xla")))


@pytest.fixture(scope="module")
def run(objects, config):
    """A workdir in the bucket, of a run that was interrupted after step 3 and went on."""
    root, real = "gs://bucket/runs/tiny", pipeline.train_batches

    def breaks(*args, **kwargs):
        for number, batch in enumerate(real(*args, **kwargs)):
            if number == 3:
                raise OSError("the disk of the images is gone")
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "train_batches", breaks)
        with pytest.raises(OSError, match="is gone"):
            train.train(config, root)
    assert [row["step"] for row in rows(root)] == [1, 2, 3]
    train.train(config, root)
    return root


@pytest.mark.slow
def test_an_interrupted_run_in_a_bucket_is_the_run_on_a_disk(objects, run, config, tmp_path):
    train.train(config, str(tmp_path))
    assert leaves(run) == leaves(tmp_path)
    assert rows(run) == rows(tmp_path)
    below = {name.removeprefix("bucket/runs/tiny/") for name in objects.names()}
    assert {"config.json", "metrics.jsonl", "parameters.txt", "results.json"} <= below
    steps = {name.split("/")[1] for name in below if name.startswith("checkpoints/")}
    assert {"4", "6"} <= steps
    assert "2" not in steps  # older ones are removed
    assert not any("unfinished" in name or "replaced" in name for name in below)


@pytest.mark.slow
def test_damage_in_a_bucket_is_found(objects, run, config, capsys):
    before = leaves(run)
    place = f"bucket/runs/tiny/checkpoints/{STEPS}/state/"
    name = max(
        (name for name in objects.names() if name.startswith(place)),
        key=lambda name: len(objects.contents[name][0]),
    )
    spoilt = np.frombuffer(objects.contents[name][0], np.uint8).copy()
    spoilt[len(spoilt) // 2] ^= 1
    objects.write(name, spoilt.tobytes())
    train.train(config, run)  # falls back to step 4, and goes on
    said = capsys.readouterr().out
    assert f"checkpoints/{STEPS} is damaged" in said
    assert f"{STEPS}.damaged-1" in said
    assert "continues after step 4" in said
    assert leaves(run) == before
    part, _ = checkpoint.restore_part(run, {"params/backbone": None})
    assert part


def test_the_names_of_skipped_images_are_written_now_and_then(objects, monkeypatch):
    class Folder:
        def name(self, index):
            return f"{index}.png"

        place = name

        def __getitem__(self, index):
            raise data.BadExample(self.name(index), "not an image")

    clock = [1000.0]
    monkeypatch.setattr(skipped.time, "monotonic", lambda: clock[0])
    path = epath.Path("gs://bucket/run/skipped.txt")

    def written():
        return objects.contents.get("bucket/run/skipped.txt", (b"", 0))[0].decode().splitlines()

    def batch(*indices):
        return {"skipped": np.array(indices, np.int32)}

    with data.Skipped([].append, path) as found:
        found.count(batch(0), Folder())
        assert len(written()) == 1
        found.count(batch(1, 2), Folder())
        assert len(written()) == 1
        clock[0] += skipped.REMOTE_SECONDS + 1
        found.count(batch(3), Folder())
        assert len(written()) == 4
        found.count(batch(4), Folder())
    with data.Skipped([].append, path, resume=True) as found:
        found.count(batch(1, 4, 5), Folder())
    assert written() == [f"'{i}.png'\tnot an image" for i in range(6)]

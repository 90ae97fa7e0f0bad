"""MoCo v3 with a vision transformer: real steps of the published settings, with everything small."""

import pathlib

import jax
import numpy as np
import pytest

from jaxcl import config as config_lib
from jaxcl import experiment
from jaxcl import mesh as mesh_lib
from jaxcl.models import vit

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "moco_v3_vit_tpu.py"
STEPS = 10


@pytest.mark.slow
def test_three_steps(monkeypatch):
    """The loss is finite, patches stay as they were drawn, all else moves, and keys follow by a momentum that rises."""
    monkeypatch.setitem(vit.SIZES, "n", (24, 2, 2))
    c = config_lib.load(CONFIG)
    c.model.name, c.model.dtype = "vit_n4", "float32"
    c.views.ops.crop.size, c.data.image_size, c.data.crop = 8, 12, "device"
    c.method.projection.layers, c.method.prediction.layers = (16, 16, 8), (16, 8)
    c.batch_size, c.steps, c.epochs = 16, STEPS, 0.0
    c.optim.warmup_epochs, c.optim.base_lr = 0.0, 0.1
    config = config_lib.from_dict(c).for_run(16 * STEPS, 1)
    mesh = mesh_lib.make_mesh(jax.devices()[:1])
    built = experiment.build(config, mesh, (12, 12, 3), STEPS, STEPS)
    state = built.init(jax.random.key(0))
    for step in range(3):
        before = jax.device_get(state.params), jax.device_get(state.extra["key_params"])
        rng = np.random.default_rng(step)
        batch = {
            "image": rng.integers(0, 256, (16, 12, 12, 3), np.uint8),
            "label": np.zeros((16, 1), np.int32),
            "index": np.arange(16, dtype=np.int32),
        }
        state, metrics = built.step(state, mesh_lib.to_global(mesh, batch))
        assert np.isfinite(metrics["loss"])
        assert metrics["rejected"] == 0
        params, keys = jax.device_get((state.params, state.extra["key_params"]))
        m = 1 - 0.01 * (1 + np.cos(np.pi * (step + 1) / STEPS)) / 2
        for path, new in jax.tree.leaves_with_path(params):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            old = before[0]
            for part in name.split("/"):
                old = old[part]
            assert np.array_equal(new, old) == name.startswith("backbone/patches/"), name
        own = {part: params[part] for part in keys}
        for key, old, new in zip(*map(jax.tree.leaves, (keys, before[1], own)), strict=True):
            np.testing.assert_allclose(key, m * old + (1 - m) * new, rtol=1e-5, atol=1e-7)
    assert set(state.extra) == {"key_params", "key_stats"}
    assert "head_prediction" not in state.extra["key_params"]

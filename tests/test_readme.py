"""What the README says is what there is."""

import pathlib
import re
import sys
import types

import jax
import numpy as np

from jaxcl import config as config_lib
from jaxcl import models, optim
from jaxcl.state import make_init, make_train_step
from jaxcl.views import presets

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(name):
    return re.search(rf"<!-- {name} -->\n```\w*\n(.*?)```", README, re.DOTALL).group(1)


def test_the_method_of_the_readme_trains(monkeypatch):
    code = block("method")
    assert len([line for line in code.splitlines() if line.strip()]) <= 45
    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)
    exec(compile(code, "README.md", "exec"), module.__dict__)
    c = config_lib.base("readme:AlignUniform", presets.simclr(8, blur=False))
    c.steps, c.batch_size = 4, 8
    c.model.width, c.model.stem = 0.0625, "cifar"
    c.method.projection.layers = (16, 8)
    c.optim.warmup_epochs = 0.0
    config = config_lib.from_dict(c)
    method = config.build_method()
    model = models.build(config.model, method.heads)
    schedule = optim.make_schedule(config.optim, 4, 1, 8)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), (8, 8, 3)))["params"]
    tx = optim.make_optimizer(config.optim, params | {"method": {}}, schedule)
    state = jax.jit(make_init(method, model, tx, (8, 8, 3)))(jax.random.key(0))
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8),
        "label": np.zeros((8, 1), np.int32),
        "index": np.arange(8, dtype=np.int32),
    }
    state, metrics = jax.jit(make_train_step(method, model, tx, schedule))(state, batch)
    assert np.isfinite(metrics["loss"])
    assert int(state.step) == 1


def test_every_config_is_in_the_table_and_no_other():
    table = README.split("\n## Configs\n")[1].split("\n## ")[0]
    listed = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\|([^|]*)\|", table, re.M))))
    there = {p.stem for p in (ROOT / "configs").glob("*.py")}
    assert listed == there


def test_the_two_commands_are_there():
    assert "jaxcl.main --config=configs/quickstart.py" in block("main command")
    assert "pytest" in block("test command")

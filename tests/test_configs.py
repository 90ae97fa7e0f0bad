"""Every config is built, traced on its own shapes, and compared with its golden text.

A changed default is a changed file in a review: `JAXCL_WRITE_GOLDEN=1 pytest tests/test_configs.py` writes them anew.
"""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import config as config_lib
from jaxcl import data, metrics, models, optim, probe
from jaxcl.data.published import LAYOUTS
from jaxcl.methods.base import method_columns
from jaxcl.state import make_init, make_train_step

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py"))
VARIANTS = [
    *CONFIGS,
    "quickstart:identity",
    "simclr_v2_tpu:resnet152,width=3,sk",
    "simclr_folder:128",
    "moco_emoji:end_to_end,groups",
    "moco_emoji:memory_bank",
    "moco_emoji:v1",
    "moco_emoji:v3",
    "moco_emoji:v3,vit",
    "supcon_moco:emoji",
    "supervised:cifar10",
    "supervised:imagenet",
    "similarity_emoji:regression",
    "similarity_emoji:classification,mlp",
    "similarity_table:triples",
    "similarity_table:pairs,style,colour",
    "looc_emoji:color,rotate,texture,different",
    "looc_imagenet100:moco,rotation",
    "metric_emoji:margin,distance_weighted",
    "metric_emoji:proxy_anchor",
    "metric_emoji:margin,distance_weighted,class",
]
LARGE = {
    "simclr_v2_tpu:resnet152,width=3,sk",
    "moco_v3_r50_tpu",
    "looc_imagenet100:moco,rotation",
    "looc_pp_imagenet100",
    "supcon_moco",
    "supcon_cifar10",
    "supervised:cifar10",
    "supervised:imagenet",
    "himulcon",
    "hicone",
    "metric_cars196",
    "metric_sop",
    "moco_v1",
}
"""Seconds of tracing for what a smaller or a similar one shows too."""
# Variants whose steps are those of others.
TEXTS = [
    *VARIANTS,
    "hierarchical_emoji:himulcon",
    "hierarchical_emoji:hicone",
    "himulcone:deepfashion,unseen",
    "himulcone:modelnet40",
    "himulcone:modelnet40,unseen",
    "himulcone:imagenet",
    "himulcone:imagenet_folders",
    "himulcone:inaturalist",
    "himulcone:cifar100",
    "moco_cifar10:symmetric",
    "moco_emoji:queue,ema",
    "moco_v3_r50_tpu:1000",
    "moco_v3_vit_tpu:vit_b16",
    "looc_emoji:moco,color,rotate",
    "looc_imagenet100:moco",
    "looc_imagenet100:moco,rotation,same",
    "looc_imagenet100:rotation,always",
    "metric_cub200:arcface",
]


def get_config(name):
    stem, _, arg = name.partition(":")
    spec = importlib.util.spec_from_file_location(stem, ROOT / "configs" / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg) if arg else module.get_config()


@pytest.mark.parametrize("name", TEXTS)
def test_golden_text(name):
    stored = config_lib.to_dict(config_lib.from_dict(get_config(name)))
    text = json.dumps(stored, indent=1, sort_keys=True) + "\n"
    path = GOLDEN / f"{name.replace(':', '-').replace(',', '-')}.json"
    if os.environ.get("JAXCL_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


PROBES = [
    (path.stem, arguments)
    for path in sorted((ROOT / "configs").glob("*.py"))
    for arguments in re.findall(
        r"^    python -m jaxcl\.probe (.*?)(?:  +\(.*)?$", path.read_text(), re.MULTILINE
    )
]


@pytest.mark.parametrize(("name", "arguments"), PROBES)
def test_a_probe_that_a_config_names_is_one(name, arguments):
    """The flags of docstrings are known, and the splits are those of the config, or of the other data as published."""
    options = probe.parse(shlex.split(arguments))
    named = {options.train, options.validation, options.test, options.gallery} - {""}
    config = get_config(name)
    known = set(config.data.splits)
    if options.data:
        known = set(LAYOUTS[options.data.partition(":")[0]].counts(""))
        named |= {options.train or "train", options.test or "test"}
    assert named <= known or not known
    if config.data.dataset == "imagenet2012":
        assert options.train == "train", "the paper's number is of all training images"


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in VARIANTS],
)
def test_the_step_is_traced_on_its_own_shapes(name):
    config = config_lib.from_dict(get_config(name))
    levels = config.evaluation.levels or ("label",)
    if config.method["name"] == "hierarchical":  # whose leaves need not be scored
        levels = (*levels, "leaf")
    config = config.for_labels(data.LabelTree(levels, (("a", "b", "c"),) * len(levels)))
    config = config.for_run(10**5, len(levels))
    method = config.build_method()
    model = models.build(config.model, method.heads)
    side, channels = config.data.image_size, config.data.channels
    h, w, c = method.views.output_shape((side, side, channels))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), (h, w, c)))["params"]
    schedule = optim.make_schedule(config.optim, 10**6, 1000, config.batch_size)
    params["method"] = jax.eval_shape(method.init_params, jax.random.key(0))
    tx = optim.make_optimizer(config.optim, params, schedule)
    state = jax.eval_shape(make_init(method, model, tx, (h, w, c)), jax.random.key(0))
    b, v = config.batch_size, len(method.views.views)
    batch = {
        "image": jax.ShapeDtypeStruct((b, side, side, channels), np.uint8),
        "label": jax.ShapeDtypeStruct((b, len(levels)), np.int32),
        "index": jax.ShapeDtypeStruct((b,), np.int32),
    }
    if config.data.crop == "host":
        batch["image"] = jax.ShapeDtypeStruct((b, v, h, w, channels), np.uint8)
        batch["crop/on"] = jax.ShapeDtypeStruct((b, v), np.bool_)
        batch["crop/box"] = jax.ShapeDtypeStruct((b, v, 4), np.int32)
    for column in method_columns(method):
        batch[column] = jax.ShapeDtypeStruct((b,), np.float32)
    after, measured = jax.eval_shape(make_train_step(method, model, tx, schedule), state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert measured["loss"].shape == ()
    assert measured["loss"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("v2", "option 'v2': expected some of queue, batch"),
        ("vit", "option 'vit' is for version 3: expected v3,vit"),
        ("v1,v3", "options 'v1' and 'v3': expected one of them"),
    ],
)
def test_options_of_the_small_moco_that_mean_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        get_config(f"moco_emoji:{options}")


@pytest.mark.slow
def test_simclr_tpu_has_one_loss_curve_on_a_cpu_and_on_eight_devices(tmp_path):
    """The pod's config, by its command, with a tiny data set of TFDS: overrides are all that it needs."""
    overrides = {
        "batch_size": 16,
        "steps": 4,
        "epochs": 0.0,
        "data.path": ROOT / "tests" / "data" / "fixtures" / "tfds",
        "data.dataset": "tiny_shapes",
        "data.image_size": 32,
        "data.workers": 0,
        "views.ops.crop.size": 32,
        "model.width": 0.125,
        "optim.warmup_epochs": 0.0,
        "run.log_every": 1,
        "mesh.platform": "cpu",
        "mesh.compile_cache": "",
    }
    with_evaluation = {
        "evaluation.every": 4,
        "evaluation.gallery": "train",
        "evaluation.validation": "train",
        "evaluation.ks": (1, 5),
    }
    without = {"evaluation.every": 0, "evaluation.gallery": "", "evaluation.validation": ""}
    curves = {}
    for devices, evaluation in ((1, without), (8, with_evaluation)):
        root = tmp_path / str(devices)
        settings = overrides | evaluation | {"mesh.cpu_devices": devices}
        done = subprocess.run(
            [
                *(sys.executable, "-m", "jaxcl.main", "--config=configs/simclr_tpu.py"),
                f"--workdir={root}",
                *(f"--config.{key}={value}" for key, value in settings.items()),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{devices} device" in done.stdout
        rows = metrics.read_metrics(root)
        curves[devices] = np.array([row["loss"] for row in rows if "loss" in row])
    assert rows[-1]["knn"] > 0
    assert (root / "report.html").stat().st_size > 10_000
    assert np.isfinite(curves[1]).all()
    # In bfloat16 what a sum over devices rounds differently grows with each step.
    apart = np.abs(curves[8] / curves[1] - 1)
    assert (apart < [1e-5, 2e-3, 0.05, 0.05]).all(), apart

"""Trainings that begin from an encoder of another workdir, or of a file."""

import json
import shutil
import struct

import jax
import numpy as np
import pytest
import tiny_network

from jaxcl import checkpoint, experiment, models, pretrained, train
from jaxcl import config as config_lib
from jaxcl import mesh as mesh_lib
from jaxcl.models import imported
from jaxcl.pretrained import InitConfig
from jaxcl.views import presets


def config_of(method="simclr", **changes):
    c = config_lib.base(method, presets.simclr(8, strength=0.5))
    c.name, c.steps, c.batch_size = "tiny", 2, 8
    c.data.name, c.data.image_size = "noise", 8
    c.model.width, c.model.stem = 1 / 32, "cifar"
    c.method.projection.layers = (12, 6)
    if method == "moco":
        c.method.queue_size, c.method.bn = 16, "global"
    c.optim.name, c.optim.warmup_epochs = "sgd", 0.0
    c.evaluation.gallery = c.evaluation.validation = c.evaluation.test = ""
    c.run.log_every, c.run.checkpoint_every, c.run.report = 1, 1, False
    c.mesh.compile_cache = ""
    c.update_from_flattened_dict(changes)
    return config_lib.from_dict(c)


def built_of(config):
    mesh = mesh_lib.make_mesh(jax.devices()[:1])
    return experiment.build(config.for_run(4096, 0), mesh, (8, 8, 3), 2, 512)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(models, "build", tiny_network.build)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Two checkpoints of a run, whose encoders differ."""
    root = tmp_path_factory.mktemp("first")
    config = config_of()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", tiny_network.build)
        built = built_of(config)
        with checkpoint.Checkpoints(
            root / "checkpoints", keep=2, config=config_lib.to_dict(config), content_id="noise"
        ) as store:
            for step in (1, 2):
                store.save(step, built.init(jax.random.key(10 + step)))
    return root


def encoder(root, step=None):
    parts = {"params/backbone": None, "batch_stats/backbone": None}
    return checkpoint.restore_part(root, parts, step=step)[0]


def test_the_first_state_has_the_encoder_of_the_workdir_and_new_heads(workdir, tiny):
    config = config_of("moco", **{"init.path": str(workdir), "seed": 5})
    built, said = built_of(config), []
    start = pretrained.load(config.init, config.model, built.state, said.append)
    state, drawn = built.init(jax.random.key(5), start), built.init(jax.random.key(5))
    stored = encoder(workdir)
    jax.tree.map(np.testing.assert_array_equal, state.params["backbone"], stored["params/backbone"])
    stats = stored["batch_stats/backbone"]
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats["backbone"], stats)
    heads = [part for part in state.params if part != "backbone"]
    for part in heads:
        jax.tree.map(np.testing.assert_array_equal, state.params[part], drawn.params[part])
    assert "head_projection" in heads
    # What the method keeps is made of the encoder: MoCo's key encoder begins as its copy.
    extra = {jax.tree_util.keystr(k): v for k, v in jax.tree.leaves_with_path(state.extra)}
    copies = [v for k, v in extra.items() if "backbone" in k and "dense" in k and "kernel" in k]
    assert copies
    for copy in copies:
        np.testing.assert_array_equal(copy, stored["params/backbone"]["dense"]["kernel"])
    assert said == [f"the encoder begins from step 2 of {workdir}, verified"]
    assert jax.tree.structure(state) == jax.tree.structure(drawn)


def test_a_run_from_an_encoder_and_its_continuation(workdir, tiny, tmp_path, capsys):
    """The encoder is taken once: a run that goes on does not look at it again."""
    source = tmp_path / "source"
    shutil.copytree(workdir, source)
    frozen = {"init.path": str(source), "init.step": 1, "optim.frozen": ("^backbone/",), "seed": 9}
    frozen["steps"] = 1
    train.train(config_of(**frozen), str(tmp_path / "run"))
    assert f"the encoder begins from step 1 of {source}" in capsys.readouterr().out
    taken, stored = encoder(tmp_path / "run", 1), encoder(workdir, 1)
    jax.tree.map(np.testing.assert_array_equal, taken["params/backbone"], stored["params/backbone"])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["init"]["path"] == str(source)
    shutil.rmtree(source)
    result = train.train(config_of(**frozen), str(tmp_path / "run"))
    assert result["complete"]
    assert "begins from" not in capsys.readouterr().out
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint in"):
        train.train(config_of(**frozen), str(tmp_path / "other"))


def test_another_network_is_refused_by_the_names_of_its_arrays(workdir):
    config = config_of(**{"init.path": str(workdir)})  # a ResNet-18
    with pytest.raises(checkpoint.OtherModelError, match="stage1_block1/conv1/kernel") as error:
        pretrained.load(config.init, config.model, built_of(config).state, print)
    assert "conv/kernel" in str(error.value)


def test_settings_that_change_what_the_encoder_is_are_said(workdir, tiny):
    changed = {"model.mean": (0.5,) * 3, "model.std": (0.2,) * 3, "model.bn_momentum": 0.5}
    config = config_of(**changed, **{"init.path": str(workdir)})
    said = []
    pretrained.load(config.init, config.model, built_of(config).state, said.append)
    assert [line.partition("=")[0] for line in said[1:]] == [
        "that encoder had model.mean",
        "that encoder had model.std",
    ]
    assert "[0.5, 0.5, 0.5] now" in said[1].replace("(", "[").replace(")", "]")


def torch_file(path, state):
    """A .safetensors file with the arrays that a ResNet needs, numbered."""
    names = {}
    for kind, tree in (("params", state.params), ("batch_stats", state.batch_stats)):
        for keys, leaf in jax.tree.leaves_with_path(tree["backbone"]):
            place = f"{kind}/{jax.tree_util.keystr(keys, simple=True, separator='/')}"
            shape = leaf.shape[::-1] if leaf.ndim == 4 else leaf.shape
            names[imported._torch_name(place)] = (leaf.ndim, shape)
    header, body = {}, b""
    for number, (name, (_, shape)) in enumerate(sorted(names.items())):
        data = np.full(shape, number / 100, "<f4").tobytes()
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return sorted(names)


def test_a_file_gives_the_encoder_in_the_types_of_the_state(tmp_path):
    path = tmp_path / "weights.safetensors"
    config = config_of(**{"init.path": str(path)})
    state, said = built_of(config).state, []
    names = torch_file(path, state)
    start = pretrained.load(config.init, config.model, state, said.append)
    for kind, whole in (("params", state.params), ("batch_stats", state.batch_stats)):
        assert list(start[kind]) == ["backbone"]
        like = jax.tree.map(lambda x: (x.shape, x.dtype), whole["backbone"])
        assert jax.tree.map(lambda x: (x.shape, x.dtype), start[kind]["backbone"]) == like
    mean = start["batch_stats"]["backbone"]["stage3_block2"]["bn1"]["mean"]
    assert mean[0] == pytest.approx(names.index("layer3.1.bn1.running_mean") / 100)
    assert said[0] == (
        f"the encoder begins from {path}: {len(names)} of its {len(names)} arrays; left out: none"
    )
    assert "the images are not normalised" in said[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.stem": "imagenet"}, r"conv1\.weight has the shape \[2, 3, 3, 3\]"),
        ({"model.name": "resnet34"}, r"no array layer1\.2\.bn1\.bias"),
        ({"model.stem": "resnet_d"}, "the model is resnet18, stem='resnet_d'"),
    ],
)
def test_a_file_of_another_network_is_refused(tmp_path, changes, message):
    path = tmp_path / "weights.safetensors"
    torch_file(path, built_of(config_of()).state)
    config = config_of(**changes, **{"init.path": str(path)})
    with pytest.raises(ValueError, match=message):
        pretrained.load(config.init, config.model, built_of(config).state, print)


def test_a_file_that_is_no_workdir_and_no_weights_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"\x80\2}.")
    config = config_of(**{"init.path": str(path)})
    with pytest.raises(ValueError, match=r"weights\.pth is no .* A pickle"):
        pretrained.load(config.init, config.model, built_of(config).state, print)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"path": "a.npz", "step": 3}, r"init\.step=3 does nothing with init\.path='.*a\.npz'"),
        ({"path": "run", "prefix": "module."}, r"init\.prefix='module\.' does nothing with"),
    ],
)
def test_settings_of_the_other_kind_of_place_are_refused(init, message):
    config = config_of(**{f"init.{name}": value for name, value in init.items()})
    with pytest.raises(ValueError, match=message):
        pretrained.load(config.init, config.model, built_of(config).state, print)


def test_nothing_is_configured():
    config = config_of()
    assert pretrained.load(config.init, config.model, built_of(config).state, print) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "x", "step": -2}, r"init\.step=-2"),
        ({"step": 3}, r"init\.path is empty"),
        ({"prefix": "a."}, r"init\.path is empty"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        InitConfig(**options)

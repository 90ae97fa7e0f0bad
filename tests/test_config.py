import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.config import ConfigError
from jaxcl.views import presets


def quick(**changes) -> ConfigDict:
    c = config_lib.base("simclr", presets.simclr(32))
    c.name, c.steps = "t", 10
    c.update_from_flattened_dict(changes)
    return c


def test_round_trip_through_json():
    built = config_lib.from_dict(quick())
    again = config_lib.from_dict(json.loads(json.dumps(config_lib.to_dict(built))))
    assert again == built
    assert again.build_method() == built.build_method()


def test_every_setting_of_every_section_can_be_overridden():
    c = quick()
    for section in ("data", "model", "optim", "evaluation", "run", "mesh"):
        cls = type(getattr(config_lib.from_dict(c), section))
        assert set(c[section]) == {f.name for f in dataclasses.fields(cls)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": {"momentm": 0.9}}, r"config.optim has no key 'momentm'; did you mean 'momentum'"),
        ({"batchsize": 3}, r"config has no key 'batchsize'; did you mean 'batch_size'"),
        ({"batch_size": "8"}, r"config.batch_size='8': expected int, got str"),
        ({"batch_size": True}, r"config.batch_size=True: expected int, got bool"),
        ({"model": 3}, r"config.model=3: expected a section"),
        ({"run": {"profile": 3}}, r"config.run.profile=3: expected a tuple"),
        ({"method": {"name": "simclrr"}}, r"there is no method 'simclrr'; did you mean 'simclr'"),
        ({"method": {"name": "no.such:Method"}}, r"'no.such:Method': expected 'module:Class' that"),
        ({"method": {"name": "jaxcl.methods:Mine"}}, r"expected 'module:Class' that can be"),
        ({"method": {"name": "jaxcl.methods:METHODS"}}, r"expected a dataclass, got"),
        ({"method": {"name": "simclr", "temprature": 1.0}}, r"method has no key 'temprature'; did you mean 'temperature'"),
        ({"method": {"name": "simclr", "temperature": -1.0}}, r"method: method.temperature=-1.0: expected a number above 0"),
        ({"epochs": 3.0}, r"set exactly one of them"),
        ({"evaluation": {"every": 5}}, r"name its splits in gallery and validation"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(change, message):
    plain = quick().to_dict()
    for key, value in change.items():
        if isinstance(value, dict) and key != "method":
            value = {**plain[key], **value}
        plain[key] = value
    with pytest.raises(ConfigError, match=message):
        config_lib.from_dict(plain)


def test_a_missing_key_is_named():
    plain = quick().to_dict()
    del plain["seed"]
    with pytest.raises(ConfigError, match=r"config.seed is missing"):
        config_lib.from_dict(plain)


def test_numbers_are_converted_and_nothing_else():
    built = config_lib.from_dict(quick(**{"method.temperature": 1}))
    assert built.method["temperature"] == 1
    assert config_lib.from_dict(quick(epochs=2, steps=0)).epochs == 2.0


def test_what_is_not_at_its_default():
    changes = {"optim.base_lr": 0.25, "views.ops.jitter.strength": 0.5}
    config = config_lib.from_dict(quick(**changes, **{"data.splits": {"train": "a"}}))
    found = config_lib.not_default(config)
    assert found | {"views.order": (), "views.views": ()} == {
        "name": "t",
        "steps": 10,
        "data.splits.train": "a",
        "views.order": (),
        "views.views": (),
        "views.ops.crop.size": 32,
        "views.ops.crop.aspect": "uniform",
        "views.ops.crop.extent": "height",
        "views.ops.crop.min_covered": 0.1,
        "views.ops.crop.antialias": False,
        "views.ops.blur.prob": 0.5,
        "views.ops.gray.prob": 0.2,
        "views.ops.jitter.prob": 0.8,
        "views.ops.jitter.strength": 0.5,
        "method.name": "simclr",
        "optim.base_lr": 0.25,
    }
    assert found["views.order"] == config.views.order
    usual = config_lib.base("simclr", config_lib.to_dict(config)["views"])
    whole = config_lib.flatten(usual.to_dict()) | found
    del whole["data.splits"]
    assert whole == config_lib.flatten(config_lib.to_dict(config))


def test_a_description_has_a_line_for_each_section():
    lines = config_lib.describe(config_lib.from_dict(quick(**{"model.width": 0.5}))).splitlines()
    assert lines[0] == "  name='t', steps=10"
    assert "  model: width=0.5" in lines
    assert "  method: name='simclr'" in lines
    assert [line for line in lines if line.startswith("  views: order=('crop', 'flip', ")]
    assert len(lines) == 4


def test_length_in_steps_or_epochs():
    assert config_lib.from_dict(quick()).total_steps(10_000) == 10
    assert config_lib.from_dict(quick(steps=0, epochs=1.5, batch_size=100)).total_steps(1000) == 15


def test_what_may_change_between_a_run_and_its_continuation():
    assert config_lib.may_change("run.log_every")
    assert config_lib.may_change("data.path")
    assert config_lib.may_change("data.on_bad")
    assert not config_lib.may_change("optim.base_lr")
    assert not config_lib.may_change("data.image_size")

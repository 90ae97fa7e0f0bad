"""Command lines: what is wrong with them is said in a line."""

import pathlib
import re

import pytest
from absl import flags
from ml_collections import config_flags

from jaxcl import command
from jaxcl import config as config_lib
from jaxcl.config import ConfigError

# ml_collections loads config files in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
QUICKSTART = CONFIGS[0].with_name("quickstart.py")
METRIC = CONFIGS[0].with_name("metric_emoji.py")


def parse(*settings, config=QUICKSTART):
    values = flags.FlagValues()
    line = ["jaxcl", f"--config={config}", *settings]
    config_flags.DEFINE_config_file(
        "config", None, "", lock_config=True, flag_values=values, sys_argv=line
    )
    rest = command.parse(line, values)
    return values["config"].value, rest


def test_settings_and_the_rest():
    config, rest = parse("--config.optim.base_lr=0.5", "file")
    assert config.optim.base_lr == 0.5
    assert rest == ["jaxcl", "file"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "--config.optim.base_lrr=1",
            r"quickstart.py has no setting 'optim.base_lrr'; did you mean 'optim.base_lr'",
        ),
        ("--config.optm.base_lr=1", r"did you mean 'optim.base_lr'"),
        ("--config.xyzzy=1", r"has no setting 'xyzzy'; known: batch_size, "),
    ],
)
def test_an_unknown_setting(setting, message):
    with pytest.raises(ConfigError, match=message):
        parse(setting)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (f"{QUICKSTART}:foo", r"quickstart.py:foo: .*expected nothing or 'identity' after the colon$"),
        (QUICKSTART.with_name("simclr_tpu.py:foo"), r"could not convert string to float: 'foo'$"),
        (QUICKSTART.with_name("nothing.py"), r"nothing.py: there is no such file$"),
        (QUICKSTART.with_name("quikstart.py"), r"no such file; did you mean '.*/quickstart\.py'\?$"),
        (QUICKSTART.parents[1] / "jaxcl" / "lock.py", r"lock.py has no get_config\(\)$"),
    ],
)  # fmt: skip
def test_a_config_file_that_cannot_be_used_is_told_in_a_line(config, message):
    with pytest.raises(ConfigError, match=message) as error:
        parse(config=config)
    assert "\n" not in str(error.value)


def test_the_value_of_a_flag_may_be_a_word_of_its_own():
    with pytest.raises(ConfigError, match=r"nothing\.py: there is no such file"):
        command.parse(["jaxcl", "--config", "nothing.py"], flags.FlagValues())


@pytest.mark.parametrize("wrong", ["--config.steps=many", "--nothing=1"])
def test_a_value_of_another_type_and_an_unknown_flag(wrong):
    with pytest.raises(flags.Error, match=r"steps|nothing"):
        parse(wrong)


def test_a_program_ends_with_the_text(monkeypatch):
    def refuse(argv, values=None):
        raise ConfigError("no such setting")

    monkeypatch.setattr(command, "parse", refuse)
    with pytest.raises(SystemExit, match="jaxcl: no such setting"):
        command.parse_or_exit(["jaxcl"])


# What a command line sets each setting to that is None in some config, or may be, and what then is there; a value of another type.
NONE_YET = {
    "method.alpha": ("3", 3.0, "many"),
    "method.base": ("0.4", 0.4, "many"),
    "method.beta": ("1e-1", 0.1, "(1,2)"),
    "method.bins": ("12", 12, "1.5"),
    "method.denominator": ("others", "others", "3"),
    "method.distance": ("squared_l2", "squared_l2", "0.5"),
    "method.epsilon": ("0.2", 0.2, "True"),
    "method.l2": (".01", 0.01, "many"),
    "method.learn_beta": ("one", "one", "1"),
    "method.margin": ("0.3", 0.3, "0.3x"),
    "method.mining": ("all", "all", "1"),
    "method.mining_neg_margin": ("0.8", 0.8, "many"),
    "method.mining_pos_margin": ("0.2", 0.2, "many"),
    "method.neg_margin": ("1", 1.0, "many"),
    "method.normalized": ("False", False, "0"),
    "method.nu": ("-0.5", -0.5, "many"),
    "method.p": ("3", 3.0, "many"),
    "method.pos_margin": ("0", 0.0, "many"),
    "method.prediction.init_std": ("0.01", 0.01, "wide"),
    "method.prediction.last_batch_norm": ("False", False, "3"),
    "method.projection.init_std": ("0.01", 0.01, "wide"),
    "method.projection.last_batch_norm": ("true", True, "3"),
    "method.reduction": ("mean", "mean", "1"),
    "method.scale": ("2", 2.0, "many"),
    "method.smooth": ("true", True, "1"),
    "method.swap": ("True", True, "yes"),
    "method.temperature": ("0.07", 0.07, "cold"),
    "optim.unadapted": ("('bias','scale')", ("bias", "scale"), "bias"),
    "optim.warmup_steps": ("7", 7, "7.5"),
    "views.ops.blur.fraction": ("0.2", 0.2, "some"),
    "views.ops.rotate.between": ("(0,90)", (0.0, 90.0), "90"),
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_what_is_none_in_a_config_can_be_set_and_be_none_again(config):
    plain = config_lib.flatten(parse(config=config)[0].to_dict())
    none = {key for key, value in plain.items() if value is None}
    assert none <= set(NONE_YET)
    settings = [f"--config.{key}={NONE_YET[key][0]}" for key in none]
    found, _ = parse(*settings, config=config)
    assert config_lib.flatten(found.to_dict()) == plain | {k: NONE_YET[k][1] for k in none}
    found, _ = parse(*settings, *[f"--config.{key}=None" for key in none], config=config)
    assert config_lib.flatten(found.to_dict()) == plain


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (QUICKSTART, "optim.warmup_steps", 40),
        (METRIC, "method.mining", "semihard"),
        (QUICKSTART.with_name("moco_v1.py"), "views.ops.blur.fraction", None),
        (QUICKSTART.with_name("simclr_tpu.py"), "views.ops.blur.fraction", 0.1),
    ],
)
def test_what_a_config_sets_can_be_none(config, key, value):
    found = config_lib.flatten(parse(config=config)[0].to_dict())
    assert found.get(key) == value
    if key in found:
        again, _ = parse(f"--config.{key}=None", config=config)
        assert config_lib.flatten(again.to_dict()) == found | {key: None}
        config_lib.from_dict(again)


@pytest.mark.parametrize("key", NONE_YET)
def test_what_may_be_none_is_refused_with_a_value_of_another_type(key):
    config = next(
        path
        for path in (*CONFIGS, f"{METRIC}:margin")
        if config_lib.flatten(config_lib.load(path).to_dict()).get(key, ...) is None
    )
    found, _ = parse(f"--config.{key}={NONE_YET[key][2]}", config=config)
    name = re.escape(key.removeprefix("views.ops."))
    with pytest.raises(ValueError, match=rf"(?i){name} ?=.*: expected "):
        config_lib.from_dict(found)


def test_settings_of_a_loss_are_those_of_its_command_line():
    config, _ = parse(
        "--config.method.margin=0.3", "--config.method.learn_beta=one", config=f"{METRIC}:margin"
    )
    method = config_lib.from_dict(config).build_method()
    assert (method.margin, method.learn_beta, method.mined) == (0.3, "one", "all")
    with pytest.raises(ConfigError, match=r"method.margin='wide': expected float, got str"):
        config_lib.from_dict(parse("--config.method.margin=wide", config=f"{METRIC}:margin")[0])

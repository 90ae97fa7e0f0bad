"""Command lines: what is wrong with them is said in a line."""

import pathlib

import pytest
from absl import flags
from ml_collections import config_flags

from jaxcl import command
from jaxcl.config import ConfigError

# ml_collections loads config files in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

QUICKSTART = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"


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

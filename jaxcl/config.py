"""A configuration: from an ml_collections ConfigDict (or JSON) to frozen dataclasses, once, with every mistake named.

A config file starts from `base(...)`, which holds every setting with its default, so that each can be overridden by
`--config.section.name=value`. Below the train loop nothing sees a ConfigDict.
"""

import copy
import dataclasses
import difflib
import importlib
import importlib.util
import os
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from jaxcl.data import DataConfig, LabelTree
from jaxcl.evaluators import EvalConfig
from jaxcl.mesh import MeshConfig
from jaxcl.methods import METHODS, Method
from jaxcl.methods.labels import IMAGE
from jaxcl.models import BackboneConfig, gradient_cache
from jaxcl.optim import OptimConfig
from jaxcl.pretrained import InitConfig
from jaxcl.views import OPS, ViewsConfig, build_program


class ConfigError(ValueError):
    """A configuration that cannot be used; the text names each key, what was expected and what to do."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How the loop goes; nothing here changes what is learned.

    Attributes:
      log_every: steps between log rows.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      keep: how many of the newest checkpoints stay.
      keep_best: also keep the checkpoint with the best online kNN.
      max_rejected: stop when this many updates were left out because they were not finite.
      profile: (first, last) step of a profiler trace written to workdir/profile; () for none. `--profile=FIRST,LAST` sets it.
      tensorboard: also write TensorBoard files (needs tensorboardX or tensorboard).
      report: write report.html at the end.
    """

    log_every: int = 20
    checkpoint_every: int = 1000
    keep: int = 2
    keep_best: bool = True
    max_rejected: int = 20
    profile: tuple[int, ...] = ()
    tensorboard: bool = False
    report: bool = True

    def __post_init__(self) -> None:
        for field in ("log_every", "checkpoint_every", "keep", "max_rejected"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: expected 1 or more")
        if self.profile and (len(self.profile) != 2 or self.profile[0] > self.profile[1]):
            raise ValueError(f"profile={self.profile}: expected (first step, last step) or ()")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole experiment.

    Attributes:
      name: names the run; the default workdir is runs/<name>.
      seed: of the initial parameters, views and the order of the data.
      batch_size: images in the global batch (all devices and processes together).
      micro_batch: images whose activations are held at a time, a divisor of batch_size; 0 is all of them. For batches that
        do not fit into memory: it changes memory and time, not what is learned; see `models.gradient_cache`.
      epochs: length of the training in passes over the data; or
      steps: length of the training in updates. Exactly one of the two is above 0.
      data: the data set.
      views: the views of each image.
      model: the encoder.
      method: name and settings of the method.
      optim: optimizer and schedule.
      evaluation: what is measured.
      run: logging, checkpoints.
      mesh: devices.
      init: where the encoder begins, if it is not drawn.
    """

    name: str
    seed: int
    batch_size: int
    epochs: float
    steps: int
    data: DataConfig
    views: ViewsConfig
    model: BackboneConfig
    method: dict[str, Any]
    optim: OptimConfig
    evaluation: EvalConfig
    run: RunConfig
    mesh: MeshConfig
    micro_batch: int = 0
    init: InitConfig = dataclasses.field(default_factory=InitConfig)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: expected 1 or more")
        self.check_micro_batch(devices=1)
        if (self.epochs > 0) == (self.steps > 0):
            raise ValueError(
                f"epochs={self.epochs}, steps={self.steps}: set exactly one of them above 0 and the other to 0"
            )

    def check_micro_batch(self, devices: int) -> None:
        """Refuses micro-batches that cannot be cut out of the batch on so many devices.

        Raises:
          ValueError: says what to choose.
        """
        gradient_cache.count_pieces(
            self.batch_size, self.micro_batch, self.model.groups_in_backbone, devices
        )

    def total_steps(self, examples: int) -> int:
        """Number of updates of the whole run over `examples` images."""
        return self.steps or max(1, round(self.epochs * (examples // self.batch_size)))

    def build_method(self) -> Method:
        """The method, with its views.

        Raises:
          ConfigError: unknown method, field or op.
        """
        fields = dict(self.method)
        cls = _method_class(fields.pop("name", None))
        known = {
            "views": build_program(self.views),
            "features": self.model.feature_dim,
            "bn_groups": self.model.bn_groups,
        }
        given = {f.name: known[f.name] for f in dataclasses.fields(cls) if f.name in known}
        return build(cls, fields, "method", given)

    def for_labels(self, tree: LabelTree) -> "Config":
        """The config whose method knows the label levels of its training data, and how many classes each has.

        It is the same config if the method does not ask for them (it has no field `labels`), or takes every image as a class.

        Args:
          tree: of the training data, as `experiment.labelled` makes it.

        Raises:
          ConfigError: the data have no labels, or not the level that the method learns from.
        """
        fields = dataclasses.fields(_method_class(self.method.get("name")))
        if all(f.name != "labels" for f in fields):
            return self
        if not tree.depth:
            if self.method.get("level") == IMAGE:
                return self
            raise ConfigError(
                f"method {self.method['name']!r} learns from labels, and the training data have none: say where they are with"
                " data.labels (a folder: parent or path) or data.label_keys (a table, TFDS), or choose a method without labels"
            )
        labels = {"names": tree.levels, "classes": tuple(map(len, tree.names))}
        config = dataclasses.replace(self, method={**self.method, "labels": labels})
        config.build_method()
        return config

    def for_run(self, examples: int, levels: int) -> "Config":
        """The config whose method knows how large the run is, as far as it asks for it (by fields of these names).

        Args:
          examples: images of the training data; with them comes total_steps.
          levels: levels of their labels.
        """
        known = {
            "examples": examples,
            "levels": levels,
            "total_steps": self.total_steps(examples),
        }
        names = {f.name for f in dataclasses.fields(_method_class(self.method.get("name")))}
        told = {name: value for name, value in known.items() if name in names}
        return dataclasses.replace(self, method={**self.method, **told})


# Fields of a method that are not settings: what it learns of the rest of the config, of the data and of the run.
GIVEN = ("views", "features", "labels", "bn_groups", "examples", "levels", "total_steps")

# Settings that may change between a run and its continuation: they do not change what is learned.
RESUMABLE = (
    "run.",
    "mesh.",
    "data.path",
    "data.pairs",
    "data.split_file",
    "data.classes_file",  # what the three files say is in the content id
    "data.taxonomy",
    "data.on_bad",
    "data.max_pixels",
    "data.workers",
    "data.threads",
    "data.prefetch",
    "evaluation.",
    "micro_batch",
    "name",
)


def may_change(key: str) -> bool:
    """Whether a run may be continued with another value of this (flattened) key."""
    return key.startswith(RESUMABLE)


def base(method: str, views: Mapping[str, Any], **method_fields: Any) -> ConfigDict:
    """A ConfigDict with every setting at its default: what a config file starts from.

    Args:
      method: name of the method.
      views: order, ops and views, as `jaxcl.views.presets` makes them; all fields of each op are filled in.
      **method_fields: settings of the method that differ from its defaults.
    """
    cls = _method_class(method)
    fields = {
        f.name: _default(f) for f in dataclasses.fields(cls) if f.name not in GIVEN and f.init
    }
    unknown = set(method_fields) - set(fields)
    if unknown:
        raise ConfigError(f"method {method!r} has no field {nearest(unknown.pop(), fields)}")
    ops = {}
    for name, given in views["ops"].items():
        op = OPS[given.get("op", name)]
        usual = {f.name: _default(f) for f in dataclasses.fields(op)}
        ops[name] = _settable(op, usual | dict(given))
    sections = {
        "data": DataConfig,
        "model": BackboneConfig,
        "init": InitConfig,
        "optim": OptimConfig,
        "evaluation": EvalConfig,
        "run": RunConfig,
        "mesh": MeshConfig,
    }
    return ConfigDict(
        {
            "name": "",
            "seed": 0,
            "batch_size": 256,
            "micro_batch": 0,
            "epochs": 0.0,
            "steps": 0,
            "views": {**views, "ops": ops},
            "method": {"name": method, **_settable(cls, {**fields, **method_fields})},
        }
        | {k: _settable(c, _plain(c())) for k, c in sections.items()}
    )


def with_method(
    config: ConfigDict, method: str, views: Mapping[str, Any] | None = None, **method_fields: Any
) -> ConfigDict:
    """A copy of a config that trains by another method, so that nothing but the method differs.

    Args:
      config: what the copy starts from; its head has no meaning for another method and is not kept.
      method: name of the method, whose fields are at their defaults.
      views: order, ops and views as in `base`; None keeps the config's.
      **method_fields: settings of the method that differ from its defaults.
    """
    new = ConfigDict(copy.deepcopy(config.to_dict(preserve_field_references=True)))
    made = base(method, new.views.to_dict() if views is None else views, **method_fields)
    new.views, new.method = made.views, made.method
    return new


def load(path: str | os.PathLike[str]) -> ConfigDict:
    """The ConfigDict of a config file; "file.py:argument" gives `get_config` its argument.

    Raises:
      ConfigError: as `call`, or what get_config returned is no ConfigDict.
    """
    made = call(path, "get_config")
    if not isinstance(made, ConfigDict):
        raise ConfigError(
            f"{path}: get_config returned a {type(made).__name__}, expected a ConfigDict"
        )
    return made


def call(path: str | os.PathLike[str], function: str) -> Any:
    """What a function of a Python file returns; "file.py:argument" gives it the argument.

    Raises:
      ConfigError: no such file, it has no such function, or the function refuses its argument (by a ValueError).
    """
    file, _, argument = os.fspath(path).partition(":")
    if not Path(file).is_file():
        beside = [known.name for known in Path(file).parent.glob("*.py")]
        near = difflib.get_close_matches(Path(file).name, beside, n=1, cutoff=0.8)
        hint = f"; did you mean {str(Path(file).with_name(near[0]))!r}?" if near else ""
        raise ConfigError(f"{file}: there is no such file{hint}")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if found is None:
        raise ConfigError(f"{file} has no {function}()")
    try:
        return found(argument) if argument else found()
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def from_dict(config: Mapping[str, Any] | ConfigDict) -> Config:
    """A ConfigDict, or the dict of a stored config.json, -> Config.

    Raises:
      ConfigError: unknown key (with the nearest name), value of another type, or a value that its room refuses.
    """
    plain = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    built = build(Config, plain, "config")
    built.build_method()  # its mistakes belong to the configuration too
    return built


def to_dict(config: Config) -> dict[str, Any]:
    """Plain dicts, lists and scalars, for JSON; `from_dict` reads them back."""
    return _plain(config)


def not_default(config: Config) -> dict[str, Any]:
    """The flattened settings that differ from their defaults, or have none: what tells this config from every other."""
    plain = to_dict(config)
    kinds = {n: {"op": op["op"]} if "op" in op else {} for n, op in plain["views"]["ops"].items()}
    usual = flatten(base(plain["method"]["name"], {"ops": kinds}).to_dict())
    always = ("name", "method.name")
    return {k: v for k, v in flatten(plain).items() if k in always or usual.get(k, ...) != v}


def describe(config: Config) -> str:
    """`not_default` as text, a line for each section."""
    lines: dict[str, list[str]] = {}
    for key, value in not_default(config).items():
        section, name = key.split(".", 1) if "." in key else ("", key)
        lines.setdefault(section, []).append(f"{name}={value!r}")
    return "\n".join(
        f"  {section}: {', '.join(found)}" if section else f"  {', '.join(found)}"
        for section, found in lines.items()
    )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"momentum": 0.9}} -> {"optim.momentum": 0.9}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def build(
    cls: type, values: Mapping[str, Any], path: str, given: Mapping[str, Any] | None = None
) -> Any:
    """Builds a dataclass from a mapping, field by field, with checked types.

    Args:
      cls: a dataclass whose fields are scalars, tuples, dicts or such dataclasses.
      values: the mapping.
      path: where we are, for messages.
      given: fields that are already built.

    Raises:
      ConfigError: names the key, what was expected and the nearest name.
    """
    given = given or {}
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in given}
    for key in values:
        if key not in fields:
            raise ConfigError(f"{path} has no key {nearest(key, fields)}")
    built = dict(given)
    for name, field in fields.items():
        if name in values:
            built[name] = _convert(hints[name], values[name], f"{path}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{path}.{name} is missing: give it a value")
    try:
        return cls(**built)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _convert(hint: Any, value: Any, path: str) -> Any:
    """Value -> the type of the hint; ints become floats and lists tuples, nothing else is guessed."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _plain(value)  # JSON has lists where the config has tuples
    if _is_union(hint):
        if value is None and type(None) in args:
            return None
        for option in (a for a in args if a is not type(None)):
            try:
                return _convert(option, value, path)
            except ConfigError as error:
                problem = error
        raise problem
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}={value!r}: expected a section with keys")
        return build(typing.cast(type, hint), value, path)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is tuple or origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ConfigError(f"{path}={value!r}: expected a tuple, for example (1, 2)")
        if args and args[-1] is Ellipsis:
            return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
        if args and len(args) != len(value):
            raise ConfigError(f"{path}={tuple(value)!r}: expected {len(args)} values")
        return (
            tuple(
                _convert(a, v, f"{path}[{i}]")
                for i, (a, v) in enumerate(zip(args, value, strict=True))
            )
            if args
            else tuple(value)
        )
    if hint is dict or origin in (dict, Mapping) or origin is typing.get_origin(Mapping[str, Any]):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}={value!r}: expected a section with keys")
        inner = args[1] if args else Any
        return {str(k): _convert(inner, v, f"{path}.{k}") for k, v in value.items()}
    expected = typing.cast(type, origin or hint)
    if isinstance(value, bool) != (expected is bool) or not isinstance(value, expected):
        raise ConfigError(
            f"{path}={value!r}: expected {expected.__name__}, got {type(value).__name__}"
        )
    return value


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return _plain(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return _plain(field.default_factory())
    raise ConfigError(f"{field.name} has no default: give it a value")


def _settable(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a section, of which those of several types, such as None or a number, can be set to any of them.

    A ConfigDict takes the type of a value from the value, and the command line none for a None. Their type is that of every
    object here, which the command line reads as Python does; that it is one of theirs is checked by `from_dict`.
    """
    hints, found = typing.get_type_hints(cls), {}
    for name, value in values.items():
        hint: Any = hints.get(name)
        if isinstance(value, Mapping):
            found[name] = _settable(hint, value) if _is_section(hint) else value
        elif _is_union(hint):
            found[name] = FieldReference(value, field_type=object)
        else:
            found[name] = value
    return found


def _is_section(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    return value


def _method_class(name: Any) -> type:
    """The method of a name; "module:Class" is one outside the package, so that probes of its runs find it too."""
    if name in METHODS:
        return METHODS[name]
    module, colon, own = str(name).partition(":")
    if not colon:
        raise ConfigError(
            f"there is no method {nearest(str(name), METHODS)}; one of your own is 'module:Class'"
        )
    try:
        found = getattr(importlib.import_module(module), own)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"method.name={name!r}: expected 'module:Class' that can be imported from here ({error})"
        ) from error
    if not dataclasses.is_dataclass(found):
        raise ConfigError(f"method.name={name!r}: expected a dataclass, got {found!r}")
    return typing.cast(type, found)


def nearest(name: str, known: Iterable[str]) -> str:
    """A name that is not known, quoted, with the nearest known one or all of them."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
    return f"{name!r}{hint}"

"""A training that begins from an encoder of another one: of a workdir, or imported from a file."""

import dataclasses
from collections.abc import Callable
from typing import Any

from etils import epath

from jaxcl import checkpoint
from jaxcl.models import BackboneConfig, imported
from jaxcl.state import TrainState

PyTree = Any

# Settings of a backbone that change how it trains or is computed, and not what it is.
_HARMLESS = ("zero_init_residual", "bn_groups", "bn_momentum", "dtype", "remat")


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where the encoder begins. The heads, the optimizer and what a method keeps are new in any case.

    Attributes:
      path: "" draws all parameters; a workdir of jaxcl (or a directory of checkpoints, such as its
        `best`) gives its encoder; a `.npz` or `.safetensors` file with torchvision's names gives its
        residual network (`jaxcl.models.imported`).
      step: of a workdir, which checkpoint; -1 is the newest.
      prefix: of a file, the names that count begin with this, which is taken off; "" takes off the known
        prefixes of wrappers (`module.`, `encoder.`, ...).
    """

    path: str = ""
    step: int = -1
    prefix: str = ""

    def __post_init__(self) -> None:
        if self.step < -1:
            raise ValueError(f"init.step={self.step}: expected a step, or -1 for the newest")
        if not self.path and (self.step >= 0 or self.prefix):
            raise ValueError("init.path is empty: name the workdir or file of the encoder")


def load(
    config: InitConfig, backbone: BackboneConfig, state: TrainState, say: Callable[[str], None]
) -> dict[str, PyTree]:
    """The encoder that a training begins from, for `Experiment.init`.

    Args:
      config: where it is.
      backbone: what it is to be.
      state: shapes, dtypes and shardings of the train state.
      say: gets lines about what was taken and what was not.

    Returns:
      {"params": {"backbone": ...}, "batch_stats": {"backbone": ...}}; {} if nothing is configured.

    Raises:
      ValueError: there is no such file, it is damaged, or its arrays are not those of the backbone, by name; or a setting for
        the other kind of place.
      CheckpointError: there is no such checkpoint, it is damaged, or of another network, by name.
    """
    if not config.path:
        return {}
    parts = {"params": state.params, "batch_stats": state.batch_stats}
    wanted = {kind: part["backbone"] for kind, part in parts.items() if "backbone" in part}
    path = epath.Path(config.path)
    if path.suffix in imported.SUFFIXES or path.is_file():
        if config.step >= 0:
            raise ValueError(
                f"init.step={config.step} does nothing with init.path={config.path!r}: a file holds one network; leave it at -1"
            )
        found = _from_file(config, backbone, wanted, say)
    else:
        if config.prefix:
            raise ValueError(
                f"init.prefix={config.prefix!r} does nothing with init.path={config.path!r}: it is about the names in a"
                " file, and a workdir has jaxcl's own; leave it empty"
            )
        found = _from_workdir(config, backbone, wanted, say)
    return {kind: {"backbone": tree} for kind, tree in found.items()}


def _from_file(
    config: InitConfig,
    backbone: BackboneConfig,
    wanted: dict[str, PyTree],
    say: Callable[[str], None],
) -> dict[str, PyTree]:
    other = backbone.selective_kernels or backbone.stem == "resnet_d"
    if not backbone.name.startswith("resnet") or other:
        raise ValueError(
            f"init.path={config.path!r}: files hold torchvision's residual networks, and the model is "
            f"{backbone.name}, stem={backbone.stem!r}, selective_kernels={backbone.selective_kernels}; "
            "set model.name to resnet18, resnet34, resnet50, ..., and model.stem to 'imagenet' or 'cifar'"
        )
    arrays = imported.read(config.path)
    try:
        found, unused = imported.convert(arrays, wanted, config.prefix)
    except ValueError as error:
        raise ValueError(
            f"{config.path} is not the {backbone.name} of this config (model.name, width, stem): {error}"
        ) from error
    say(
        f"the encoder begins from {config.path}: {len(arrays) - len(unused)} of its {len(arrays)} arrays; "
        f"left out: {', '.join(unused) or 'none'}"
    )
    if not backbone.mean:
        say(
            "the images are not normalised (model.mean is empty); most published networks were trained on "
            "model.mean=(0.485, 0.456, 0.406), model.std=(0.229, 0.224, 0.225)"
        )
    return found


def _from_workdir(
    config: InitConfig,
    backbone: BackboneConfig,
    wanted: dict[str, PyTree],
    say: Callable[[str], None],
) -> dict[str, PyTree]:
    part = {f"{kind}/backbone": tree for kind, tree in wanted.items()}
    step = None if config.step < 0 else config.step
    found, manifest = checkpoint.restore_part(config.path, part, step=step)
    say(f"the encoder begins from step {manifest.step:,} of {config.path}, verified")
    there = manifest.config.get("model", {})
    for difference in checkpoint.config_diff(there, dataclasses.asdict(backbone)):
        if difference.key not in _HARMLESS:
            say(
                f"that encoder had model.{difference.key}={difference.stored!r}, "
                f"and has {difference.now!r} now"
            )
    return {kind: found[f"{kind}/backbone"] for kind in wanted}

"""What a probe starts from: the checkpoint, the config and the splits."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from jaxcl import checkpoint, data
from jaxcl import config as config_lib
from jaxcl.config import Config
from jaxcl.data import Source
from jaxcl.data.command import setting_value
from jaxcl.evaluators import LayerModel
from jaxcl.losses import Scoring
from jaxcl.methods.base import Method, scores_pairs, scoring
from jaxcl.probe.options import Options, ProbeError

PyTree = Any

HELD_OUT = 0.1
"""Share of each class of the training images on which settings are chosen if no split is named."""

KEY = "extra/key_params"
"""Where a checkpoint has the parameters of a key encoder."""

KEPT_DATA_SETTINGS = (
    "image_size",
    "channels",
    "crop",
    "on_bad",
    "max_pixels",
    "workers",
    "threads",
    "prefetch",
)
"""What stays of the run's data settings when other data are probed."""


def find_step(workdir: str, step: str) -> tuple[epath.Path, int | None]:
    """(directory of checkpoints, step; None is the newest) of "newest", "best" or a number.

    Raises:
      ProbeError: there is no such workdir.
    """
    root = epath.Path(workdir)
    if not root.exists():
        raise ProbeError(f"--workdir={workdir}: there is no such directory")
    if step == "best":
        return root / "best", None
    if step == "newest":
        return root / "checkpoints", None
    saved = root / "checkpoints" / step
    return (root / "checkpoints" if saved.exists() else root / "best"), int(step)


def probed_config(stored: Mapping[str, Any], data_flag: str, settings: Sequence[str]) -> Config:
    """The run's config with the data and the settings of the command line.

    Raises:
      ConfigError: a setting that does not exist, or has another type.
      ProbeError: a setting that is not of the form section.key=value.
    """
    plain = json.loads(json.dumps(stored))
    if data_flag:
        plain["data"] = {
            **dataclasses.asdict(data.DataConfig()),
            **{k: v for k, v in plain["data"].items() if k in KEPT_DATA_SETTINGS},
            **data.parse_source(data_flag),
        }
    for setting in settings:
        key, equals, text = setting.partition("=")
        section = plain
        *path, last = key.split(".")
        for name in path:
            section = section.get(name) if isinstance(section, dict) else None
        if not equals or not isinstance(section, dict):
            raise ProbeError(
                f"--set={setting}: expected section.key=value, as in data.image_size=64"
            )
        section[last] = setting_value(text, section.get(last))
    return config_lib.from_dict(plain)


@dataclasses.dataclass(frozen=True)
class Splits:
    """The labelled images of a probe.

    Attributes:
      last: to learn from once settings are chosen.
      test: to score.
      train: to learn from while settings are chosen; None with
      validation: where they are chosen; None means that a tenth of `last` is held out for it.
      gallery: what retrieval searches; None for the test images, each without the query.
      classified: whether the classes of `test` can be learned from `last`.
      names: what each of them is, for the record.
    """

    last: Source
    test: Source
    train: Source | None
    validation: Source | None
    gallery: Source | None
    classified: bool
    names: dict[str, str]


def open_splits(config: Config, options: Options) -> Splits:
    """Loads the splits of the run, or those of the options.

    Raises:
      ProbeError: no split to train or test on is named, or the training images have no labels.
    """
    run = config.evaluation
    own = not options.data
    train = options.train or (run.gallery if own else "train")
    test = options.test or ((run.test or run.validation) if own else "test")
    if not train or not test:
        raise ProbeError("the run's config names no splits: give --train and --test")
    validation = options.validation
    if own and not options.train and run.test:
        validation = validation or run.validation
    # What is scored must not choose its own settings.
    validation = "" if validation == test else validation
    last = run.test_gallery if own and not options.train and run.test_gallery else train
    # The run's gallery is that of the run's queries.
    gallery = options.gallery or (run.retrieval_gallery if own and not options.test else "")
    names = {"train": train, "validation": validation, "last": last, "test": test}
    if not validation:
        names |= held_out_names(last)
    if gallery:
        names["gallery"] = gallery
    needed = {last, test, *({train, validation} if validation else ()), *filter(None, (gallery,))}
    opened = {name: data.load(config.data, name) for name in sorted(needed)}
    if not opened[last].tree.depth and not config.data.pairs.get(test):
        raise ProbeError(f"the split {last!r} has no labels: there is nothing to probe")
    return Splits(
        opened[last],
        opened[test],
        opened[train] if validation else None,
        opened[validation] if validation else None,
        opened.get(gallery),
        True,
        names,
    )


def open_unseen(config: Config, options: Options, splits: Splits) -> Splits | None:
    """Loads the splits of unseen classes; settings are chosen where `splits` choose theirs.

    Returns:
      None if neither the options nor the run name such a split.
    """
    run = config.evaluation
    own = not (options.data or options.test)
    unseen = options.unseen or (run.unseen if own else "")
    if not unseen:
        return None
    last = options.unseen_train or (run.unseen_gallery if own else "")
    names = {**splits.names, "test": unseen}
    names.pop("gallery", None)
    if last:
        names |= {"last": last} | ({} if splits.validation else held_out_names(last))
    return dataclasses.replace(
        splits,
        last=data.load(config.data, last) if last else splits.last,
        test=data.load(config.data, unseen),
        gallery=None,
        classified=bool(last),
        names=names,
    )


def held_out_names(last: str) -> dict[str, str]:
    """What train and validation are called where a part of `last` is held out."""
    return {"train": f"the rest of {last}", "validation": f"{HELD_OUT:.0%} of {last}"}


def restore_scoring(
    directory: epath.Path, step: int | None, method: Method, head: str, sharding: Any
) -> Scoring | None:
    """How the run's method scores two z of a head, with its own parameters of a checkpoint; None if it has no way of its own.

    Raises:
      OtherModelError: names the parameters that the checkpoint lacks, has besides, or has otherwise.
    """
    if not scores_pairs(method):
        return None
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(method.init_params, jax.random.key(0)),
    )
    if jax.tree.leaves(wanted):  # a distance alone has none
        found, _ = checkpoint.restore_part(directory, {"params/method": wanted}, step=step)
        wanted = found["params/method"]
    return scoring(method, wanted, head)


def restore(
    directory: epath.Path,
    step: int | None,
    network: LayerModel,
    shapes: PyTree,
    sharding: Any,
    encoder: str = "trained",
) -> tuple[dict[str, PyTree], checkpoint.Manifest]:
    """The parts of a checkpoint that a layer depends on: {"params", "batch_stats"}, verified.

    Args:
      directory: of checkpoints.
      step: which; None is the newest.
      network: ends at the layer.
      shapes: of all the model's variables.
      sharding: of the restored arrays.
      encoder: "trained", or "key", the key encoder with its own statistics.

    Raises:
      OtherModelError: names the arrays that the checkpoint lacks, has besides, or has otherwise.
    """
    stored = {"trained": ("params", "batch_stats"), "key": (KEY, "extra/key_stats")}[encoder]
    places = dict(zip(("params", "batch_stats"), stored, strict=True))
    wanted = {
        f"{places[kind]}/{part}": jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )
        for kind, parts in network.select(shapes).items()
        for part, tree in parts.items()
    }
    found, manifest = checkpoint.restore_part(directory, wanted, step=step)
    variables: dict[str, PyTree] = {"params": {}, "batch_stats": {}}
    for kind, place in places.items():
        inside = f"{place}/"
        variables[kind] = {
            p.removeprefix(inside): tree for p, tree in found.items() if p.startswith(inside)
        }
    return variables, manifest

"""Probes a checkpoint: `python -m jaxcl.probe --workdir=DIR [--eval=knn,linear,sgd,finetune]`.

Only the encoder and its statistics are restored (and a head, if one of its layers is probed), and
scored beside the untrained encoder and the raw pixels. The data are those of the run, or any other
(`--data`), for transfer. `--help` lists the settings.
"""

import argparse
import ast
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from rich.console import Console

from jaxcl import checkpoint, data, evaluators, models, optim
from jaxcl import config as config_lib
from jaxcl import mesh as mesh_lib
from jaxcl.checkpoint import CheckpointError
from jaxcl.config import Config, ConfigError
from jaxcl.data import Sampler, Source
from jaxcl.evaluators import Features, Layer, LayerModel, Row
from jaxcl.optim import OptimConfig
from jaxcl.views import EvalView, ViewsConfig, build_program, presets

PyTree = Any

RESULTS = "probe.json"
EVALUATIONS = ("knn", "linear", "sgd", "finetune")
METRICS = ("cosine", "centred_cosine")
HELD_OUT = 0.1
"""Share of each class of the training images on which settings are chosen if no split is named."""

TRAINED, UNTRAINED, PIXELS = "trained encoder", "untrained encoder", "raw pixels"

LINEAR_SGD = OptimConfig(
    name="sgd", base_lr=0.1, warmup_epochs=0.0, momentum=0.9, nesterov=True, weight_decay=0.0
)
FINETUNE = {
    "v1": dataclasses.replace(LINEAR_SGD, base_lr=0.05),
    "v2": OptimConfig(
        name="lars", base_lr=0.005, scaling="sqrt", warmup_epochs=0.0, weight_decay=0.0
    ),
}
SCRATCH = dataclasses.replace(LINEAR_SGD, weight_decay=1e-4)


class ProbeError(ValueError):
    """A probe that cannot be made; the text says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is probed, on which data, and how.

    Attributes:
      workdir: of the run.
      step: "newest", "best" (by online kNN), or the number of a step.
      evaluations: some of `EVALUATIONS`.
      layer: "h", "z", "z:HEAD", "head:K" or "head:HEAD:K"; see `Layer.parse`.
      labels: shares of the labels; 1 is all. kNN always uses all.
      levels: names of the label levels; () for the run's, or all that training and test images
        share.
      data: "" for the run's data, or "KIND", "KIND:PATH", "tfds:NAME" or "tfds:NAME@DIR".
      settings: "section.key=value" changes of the run's config, for example "data.image_size=64".
      train: split to learn from; "" for the run's, or "train" with other data.
      validation: split on which settings are chosen; "" for the run's, or a tenth of `train`.
      test: split to score; "" for the run's, or "test" with other data.
      size: side of the images that the network is given; 0 for that of the run.
      baselines: also score raw pixels and the untrained encoder.
      paper_grid: choose l2 among SimCLR's 45 values, not 9.
      recipe: of fine-tuning: "v1" (Nesterov) or "v2" (LARS).
      epochs: of sgd and finetune; 0 for the paper's: 90, and 60 (up to 2 % of the labels) or 30.
      lr: base learning rate of sgd and finetune, before scaling with the batch; 0: the paper's.
      batch_size: of sgd and finetune.
      scratch: factor of the epochs of the same network trained from scratch; 0 for no such control.
      seed: of label subsets, order and views.
      out: where the results go; "" is probe.json in the workdir.
    """

    workdir: str
    step: str = "newest"
    evaluations: tuple[str, ...] = ("knn", "linear")
    layer: str = "h"
    labels: tuple[float, ...] = (1.0,)
    levels: tuple[str, ...] = ()
    data: str = ""
    settings: tuple[str, ...] = ()
    train: str = ""
    validation: str = ""
    test: str = ""
    size: int = 0
    baselines: bool = True
    paper_grid: bool = False
    recipe: str = "v1"
    epochs: float = 0.0
    lr: float = 0.0
    batch_size: int = 256
    scratch: float = 2.0
    seed: int = 0
    out: str = ""

    def __post_init__(self) -> None:
        unknown = set(self.evaluations) - set(EVALUATIONS)
        if unknown or not self.evaluations:
            raise ProbeError(
                f"--eval={','.join(self.evaluations)}: expected some of {', '.join(EVALUATIONS)}"
            )
        if not self.labels or not all(0 < share <= 1 for share in self.labels):
            raise ProbeError(f"--labels={self.labels}: expected shares in (0, 1], as in 0.01,0.1,1")
        if self.step not in ("newest", "best") and not self.step.isdecimal():
            raise ProbeError(f"--step={self.step}: expected newest, best or the number of a step")
        if self.recipe not in FINETUNE:
            raise ProbeError(f"--recipe={self.recipe}: expected one of {', '.join(FINETUNE)}")
        if min(self.epochs, self.lr, self.scratch, self.size) < 0 or self.batch_size < 1:
            raise ProbeError(
                "--epochs, --lr, --scratch and --size: expected 0 or more; --batch_size: 1 or more"
            )


# ---------------------------------------------------------------------------------------------
# What is probed
# ---------------------------------------------------------------------------------------------


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
            **{k: v for k, v in plain["data"].items() if k in KEPT_DATA_SETTINGS},
            **parse_data(data_flag),
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
        try:
            section[last] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            section[last] = text
    return config_lib.from_dict(plain)


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


def parse_data(text: str) -> dict[str, Any]:
    """ "folder:/path" or "tfds:cifar10@/dir" -> fields of DataConfig."""
    kind, _, rest = text.partition(":")
    if kind == "tfds":
        name, _, directory = rest.partition("@")
        return {"name": kind, "dataset": name, "path": directory}
    if kind == "fashion_mnist":
        return {"name": "idx", "dataset": kind, "path": rest}
    return {"name": kind, "path": rest}


@dataclasses.dataclass(frozen=True)
class Splits:
    """The labelled images of a probe.

    Attributes:
      last: to learn from once settings are chosen.
      test: to score.
      train: to learn from while settings are chosen; None with
      validation: where they are chosen; None means that a tenth of `last` is held out for it.
      names: what each of them is, for the record.
    """

    last: Source
    test: Source
    train: Source | None
    validation: Source | None
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
    names = {"train": train, "validation": validation, "last": last, "test": test}
    if not validation:
        names |= {"train": f"the rest of {last}", "validation": f"{HELD_OUT:.0%} of {last}"}
    opened = {name: data.load(config.data, name) for name in {last, test}}
    if not opened[last].tree.depth:
        raise ProbeError(f"the split {last!r} has no labels: there is nothing to probe")
    if not validation:
        return Splits(opened[last], opened[test], None, None, names)
    for name in {train, validation} - set(opened):
        opened[name] = data.load(config.data, name)
    return Splits(opened[last], opened[test], opened[train], opened[validation], names)


def restore(
    directory: epath.Path, step: int | None, network: LayerModel, shapes: PyTree, sharding: Any
) -> tuple[dict[str, PyTree], checkpoint.Manifest]:
    """The parts of a checkpoint that a layer depends on: {"params", "batch_stats"}, verified.

    Args:
      directory: of checkpoints.
      step: which; None is the newest.
      network: ends at the layer.
      shapes: of all the model's variables.
      sharding: of the restored arrays.

    Raises:
      OtherModelError: names the arrays that the checkpoint lacks, has besides, or has otherwise.
    """
    wanted = {
        f"{kind}/{part}": jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )
        for kind, parts in network.select(shapes).items()
        for part, tree in parts.items()
    }
    found, manifest = checkpoint.restore_part(directory, wanted, step=step)
    variables: dict[str, PyTree] = {"params": {}, "batch_stats": {}}
    for path, tree in found.items():
        kind, _, part = path.partition("/")
        variables[kind][part] = tree
    return variables, manifest


# ---------------------------------------------------------------------------------------------
# The probe
# ---------------------------------------------------------------------------------------------


def probe(options: Options) -> dict[str, Any]:
    """Restores a checkpoint's encoder, scores it, prints the table and appends to probe.json.

    Returns:
      the record that was written: "step", "layer", "data", "splits", "rows", ...

    Raises:
      ProbeError, ConfigError: an option that cannot be.
      CheckpointError: no such checkpoint, another model, or damage.
      ValueError: the data are missing or do not fit.
    """
    started = time.monotonic()
    directory, step = find_step(options.workdir, options.step)
    manifest = checkpoint.read_manifest(directory, step)
    config = probed_config(manifest.config, options.data, options.settings)
    mesh_lib.initialize(config.mesh)
    mesh = mesh_lib.make_mesh()
    console = Console(highlight=False, markup=False, soft_wrap=True, quiet=not mesh_lib.is_main())

    splits = open_splits(config, options)
    method = config.build_method()
    layer = Layer.parse(options.layer, tuple(method.heads))
    model = models.build(config.model, method.heads)
    network = layer.of(model)
    height, width, channels = method.views.output_shape(data.image_shape(splits.last, config.data))
    shape = (options.size or height, options.size or width, channels)
    # As in training, so that the untrained encoder is the one that the run started from.
    key = jax.random.split(jax.random.key(config.seed), 4)[0]
    shapes = jax.eval_shape(lambda: model.init(key, shape))
    trained, manifest = restore(
        directory, manifest.step, network, shapes, mesh_lib.replicated(mesh)
    )
    arrays = len(jax.tree.leaves(trained))
    console.print(
        f"{options.workdir}: step {manifest.step:,}, layer {layer}: {arrays} arrays of "
        f"{' and '.join(layer.parts)}, verified"
    )
    console.print(
        f"data: {splits.last.describe()}; scored on {splits.names['test']!r}: "
        f"{splits.test.describe()}"
    )

    names = splits.test.tree.levels
    levels = evaluators.shared_levels(names, splits.last.labels, splits.test.labels)
    if wanted := options.levels or (() if options.data else config.evaluation.levels):
        levels = {name: splits.test.tree.level(name) for name in wanted}
    if not levels:
        raise ProbeError(
            f"the splits {splits.names['last']!r} and {splits.names['test']!r} have no class in "
            f"common at any level of {list(names)}"
        )
    networks: dict[str, PyTree | None] = {TRAINED: trained}
    if options.baselines:
        fresh = jax.jit(
            lambda: network.select(model.init(key, shape)), out_shardings=mesh_lib.replicated(mesh)
        )()
        networks = {PIXELS: None, UNTRAINED: fresh, **networks}

    run = _Probe(options, config, splits, network, shape, mesh, levels, console)
    rows: list[Row] = []
    details: dict[str, Any] = {}
    if {"knn", "linear"} & set(options.evaluations):
        for name, variables in networks.items():
            rows += run.on_features(name, variables, details)
    for name, variables in networks.items():
        if "sgd" in options.evaluations and variables is not None:
            rows += run.linear_sgd(name, variables)
    if "finetune" in options.evaluations:
        rows += run.finetune(trained, key)

    record = {
        "workdir": options.workdir,
        "step": manifest.step,
        "layer": str(layer),
        "data": config_lib.to_dict(config)["data"],
        "content_id": {"test": splits.test.content_id, "train": splits.last.content_id},
        "splits": splits.names,
        "options": dataclasses.asdict(options),
        "rows": [row.as_dict() for row in rows],
        "details": details,
        "devices": mesh_lib.describe(mesh),
        "seconds": round(time.monotonic() - started, 1),
    }
    if mesh_lib.is_main():
        title = f"{config.name}, step {manifest.step:,}, {layer}, {splits.names['test']!r}, in %"
        Console().print(evaluators.table(rows, title=title))
        out = epath.Path(options.out) if options.out else epath.Path(options.workdir) / RESULTS
        append(out, record)
        console.print(f"written to {out}")
    return record


def append(path: epath.Path, record: Mapping[str, Any]) -> None:
    """Adds a record to a JSON list; the old file stays whole until the new one is.

    Raises:
      ProbeError: the file is there and is no such list.
    """
    records: Any = []
    if path.exists():
        try:
            records = json.loads(path.read_text())
        except json.JSONDecodeError:
            records = None
        if not isinstance(records, list):
            raise ProbeError(f"{path} is not a list of probes: move it away, or give --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.parent / f"{path.name}.new"
    new.write_text(json.dumps([*records, record], indent=2))
    new.replace(path)


@dataclasses.dataclass(frozen=True)
class _Probe:
    """The evaluations of one probe."""

    options: Options
    config: Config
    splits: Splits
    network: LayerModel
    shape: tuple[int, int, int]
    mesh: jax.sharding.Mesh
    levels: dict[str, int]
    console: Console

    # Frozen features

    def on_features(
        self, name: str, variables: PyTree | None, details: dict[str, Any]
    ) -> list[Row]:
        """kNN and logistic regression on the frozen network's features, or raw pixels (None)."""
        self.console.print(f"{name}: taking features ...")
        splits = self.splits
        last, test = (self.features(variables, source) for source in (splits.last, splits.test))
        if splits.train is None or splits.validation is None:
            train, validation = self.hold_out(last)
        else:
            same = splits.train is splits.last
            train = last if same else self.features(variables, splits.train)
            validation = self.features(variables, splits.validation)
        rows = []
        for level_name, level in self.levels.items():
            if "knn" in self.options.evaluations:
                rows += self.knn(name, level_name, level, train, validation, last, test, details)
            if "linear" in self.options.evaluations:
                for share in self.options.labels:
                    some = [self.few(f, level, share) for f in (train, validation, last)]
                    result = evaluators.linear_probe(
                        some[0],
                        some[1],
                        test,
                        level,
                        evaluators.PAPER_GRID if self.options.paper_grid else evaluators.SHORT_GRID,
                        refit=some[2],
                    )
                    row = Row.of(name, level_name, result, with_share("linear", share))
                    rows.append(row)
        return rows

    def knn(
        self,
        name: str,
        level_name: str,
        level: int,
        train: Features,
        validation: Features,
        last: Features,
        test: Features,
        details: dict[str, Any],
    ) -> list[Row]:
        """kNN with k and metric chosen, the usual k = 200, and all the others for the record."""
        run = self.config.evaluation
        wanted = sorted({*run.ks, 1, 5, 10, 20, 200})
        ks = [k for k in wanted if k <= len(train)]
        if ks != wanted:
            left_out = ", ".join(map(str, wanted[len(ks) :]))
            self.console.print(f"kNN: k {left_out} left out, the gallery has {len(train)} images")
        chosen = evaluators.knn_selected(
            train, validation, test, level, ks, run.temperature, METRICS, last
        )
        rows = [Row.of(name, level_name, chosen)]
        by_metric = {
            metric: evaluators.knn(last, test, level, ks, run.temperature, metric)
            for metric in METRICS
        }
        details[f"{name}/knn/{level_name}"] = {
            metric: {str(k): value for k, value in result.accuracy.items()}
            for metric, result in by_metric.items()
        }
        plain = by_metric["cosine"]
        if 200 in plain.accuracy:
            settings = {"k": 200, "metric": "cosine", "temperature": run.temperature}
            rows.append(
                Row(name, "knn k=200", level_name, plain.accuracy[200], plain.queries, settings)
            )
        return rows

    def features(self, variables: PyTree | None, source: Source) -> Features:
        """Features of a source."""
        view = EvalView(self.shape[0])
        if variables is None:
            return evaluators.raw_pixels(self.batches(source), view)
        extract = evaluators.make_extractor(
            self.network.encode, view, mesh_lib.batch_sharding(self.mesh)
        )
        return extract(variables, self.batches(source))

    def batches(self, source: Source) -> Iterator[data.Batch]:
        """The images of a source; those that cannot be read are named."""
        size = self.config.evaluation.batch_size
        for batch in data.eval_batches(source, size, self.config.data):
            data.count_skipped(batch, source, self.console.print)
            yield batch

    def hold_out(self, features: Features) -> tuple[Features, Features]:
        """(the rest, a tenth of each class at the finest level that is scored), by the seed."""
        level = max(self.levels.values())
        held = np.zeros(len(features), bool)
        held[self.some(features, level, HELD_OUT)] = True
        return features.take(~held), features.take(held)

    def few(self, features: Features, level: int, share: float) -> Features:
        """The share of each class, by the seed."""
        return features if share == 1 else features.take(self.some(features, level, share))

    def some(self, labelled: Features | Source, level: int, share: float) -> np.ndarray:
        """Rows of a share of each class."""
        numbers = evaluators.Classes.of(labelled.labels, level).number(labelled.labels)
        return data.class_balanced_subset(numbers, fraction=share, seed=self.options.seed)

    # By gradient descent

    def linear_sgd(self, name: str, variables: PyTree) -> list[Row]:
        """The linear probe with augmentation, for each level and share of the labels."""
        rows = []
        for level_name, share, task in self.tasks():
            recipe = self.recipe(LINEAR_SGD, self.options.epochs or 90.0)
            self.say(name, "linear by SGD", level_name, share, recipe)
            trained = evaluators.linear_sgd(task, self.network, variables, recipe)
            rows.append(Row.of(name, level_name, trained.result, with_share("sgd", share)))
        return rows

    def finetune(self, variables: PyTree, key: jax.Array) -> list[Row]:
        """Fine-tuning, and beside it the same network from scratch on the same labels."""
        rows = []
        for level_name, share, task in self.tasks():
            network = self.network
            if self.options.data:  # transfer
                per_epoch = max(1, len(task.train) // self.options.batch_size)
                momentum = evaluators.transfer_bn_momentum(per_epoch)
                backbone = dataclasses.replace(self.config.model, bn_momentum=momentum)
                heads = self.config.build_method().heads
                network = network.layer.of(models.build(backbone, heads))
            epochs = self.options.epochs or (60.0 if share <= 0.02 else 30.0)
            recipe = self.recipe(FINETUNE[self.options.recipe], epochs)
            self.say(TRAINED, "fine-tuned", level_name, share, recipe)
            trained = evaluators.finetune(task, network, variables, recipe)
            method = with_share("finetune", share)
            rows.append(Row.of(TRAINED, level_name, trained.result, method))
            if self.options.scratch:
                recipe = self.recipe(SCRATCH, epochs * self.options.scratch, scratch=True)
                self.say(UNTRAINED, "trained from scratch", level_name, share, recipe)
                fresh = jax.jit(
                    lambda network=network: network.init(key, self.shape),
                    out_shardings=mesh_lib.replicated(self.mesh),
                )()
                control = evaluators.finetune(task, network, fresh, recipe)
                rows.append(Row.of(UNTRAINED, level_name, control.result, method))
        return rows

    def tasks(self) -> Iterator[tuple[str, float, evaluators.Task]]:
        """(level, share of the labels, task) for each combination that was asked for."""
        source = self.splits.last
        for name, level in self.levels.items():
            for share in self.options.labels:
                few = source
                if share < 1:
                    few = data.subset(source, self.some(source, level, share))
                yield name, share, self.task(few, level)

    def task(self, train: Source, level: int) -> evaluators.Task:
        """Crops and flips for training, the centre for the test."""
        size = self.shape[0]
        return evaluators.Task(
            train=train,
            test=self.splits.test,
            level=level,
            views=build_program(ViewsConfig(**presets.crop_flip(size))),
            view=EvalView(size),
            image_shape=self.shape,
            feed=self.feed,
            test_batches=self.batches,
            sharding=mesh_lib.batch_sharding(self.mesh),
        )

    def feed(
        self, source: Source, sampler: Sampler, steps: int
    ) -> Iterator[Mapping[str, jax.Array]]:
        """Training batches, on the devices."""
        batches = data.train_batches(
            source,
            sampler,
            self.config.data,
            0,
            steps,
            process_index=mesh_lib.process_index(),
            process_count=mesh_lib.process_count(),
            views=build_program(ViewsConfig(**presets.crop_flip(self.shape[0]))),
            crop_seed=self.options.seed,
        )
        for batch in batches:
            data.count_skipped(batch, source, self.console.print)
            yield mesh_lib.to_global(self.mesh, data.arrays(batch))

    def recipe(
        self, settings: OptimConfig, epochs: float, scratch: bool = False
    ) -> evaluators.Recipe:
        """Optimizer and schedule of the settings; --lr does not change the control from scratch."""
        if self.options.lr and not scratch:
            settings = dataclasses.replace(settings, base_lr=self.options.lr)

        def optimizer(
            params: PyTree, steps: int, per_epoch: int, batch: int
        ) -> optax.GradientTransformation:
            schedule = optim.make_schedule(settings, steps, per_epoch, batch)
            return optim.make_optimizer(settings, params, schedule)

        return evaluators.Recipe(epochs, self.options.batch_size, optimizer, self.options.seed)

    def say(
        self, name: str, what: str, level: str, share: float, recipe: evaluators.Recipe
    ) -> None:
        """What is being trained, which takes a while."""
        self.console.print(
            f"{name} {what}: {level}, {share:.0%} of the labels, {recipe.epochs:g} epochs ..."
        )


def with_share(method: str, share: float) -> str:
    """ "linear", 0.1 -> "linear 10%"."""
    return method if share == 1 else f"{method} {100 * share:g}%"


# ---------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> Options:
    """Command-line arguments -> Options."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcl.probe",
        description="Scores the encoder of a checkpoint by kNN, linear probes and fine-tuning.",
        allow_abbrev=False,
    )
    default = Options("")

    def flag(name: str, text: str, field: str = "", **extra: Any) -> None:
        value = getattr(default, field or name)
        kind = {"type": type(value)} if isinstance(value, int | float) else {}
        shown = (
            f" (default: {value})" if value not in ("", ()) and not isinstance(value, tuple) else ""
        )
        parser.add_argument(
            f"--{name}", dest=field or name, default=value, help=text + shown, **{**kind, **extra}
        )

    def names(text: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())

    def shares(text: str) -> tuple[float, ...]:
        return tuple(float(part) for part in names(text))

    def switch(name: str, text: str) -> None:
        value = getattr(default, name)
        parser.add_argument(
            f"--{name}", action=argparse.BooleanOptionalAction, default=value, help=text
        )

    parser.add_argument("--workdir", required=True, help="The run's directory or bucket.")
    flag("step", "newest, best (by online kNN), or the number of a step")
    flag("eval", "some of knn,linear,sgd,finetune (default: knn,linear)", "evaluations", type=names)
    flag("layer", "h; z or z:HEAD; head:K or head:HEAD:K, the K-th layer of a head")
    flag("labels", "shares of the labels, as in 0.01,0.1,1 (default: 1)", type=shares)
    flag("levels", "label levels, by name (default: all that can be scored)", type=names)
    flag(
        "data",
        "other data: emoji, folder:PATH, table:FILE, idx:DIR, fashion_mnist:DIR, "
        "tfds:NAME[@DIR], records:DIR",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change a setting of the run's config, as in data.labels=path or mesh.platform=cpu; "
        "may be repeated",
    )
    flag("train", "split to learn from (default: the run's gallery; 'train' with --data)")
    flag(
        "validation", "split on which settings are chosen (default: the run's, or a tenth of train)"
    )
    flag("test", "split to score (default: the run's; 'test' with --data)")
    flag("size", "side of the images that the network is given; 0: as in the run")
    switch("baselines", "also score raw pixels and the untrained encoder")
    switch("paper_grid", "choose l2 among SimCLR's 45 values instead of 9")
    flag(
        "recipe", "fine-tuning as in SimCLR v1 (Nesterov) or v2 (LARS, usually with --layer=head:1)"
    )
    flag(
        "epochs", "of sgd and finetune; 0: the paper's, 90, and 60 (up to 2 %% of the labels) or 30"
    )
    flag(
        "lr", "base learning rate of sgd and finetune; 0: the paper's, 0.1 and 0.05 per 256 images"
    )
    flag("batch_size", "of sgd and finetune")
    flag("scratch", "epochs of the control from scratch, as a multiple; 0: no control")
    flag("seed", "of label subsets, order and views")
    flag("out", "file for the results (default: probe.json in the workdir)")
    given = vars(parser.parse_args(list(argv)))
    return Options(**{**given, "settings": tuple(given["settings"])})


def main(argv: Sequence[str] | None = None) -> None:
    """The command: flags -> `probe`."""
    try:
        probe(parse(sys.argv[1:] if argv is None else argv))
    except (ProbeError, ConfigError, CheckpointError, ValueError) as error:
        sys.exit(f"jaxcl.probe: {error}")


if __name__ == "__main__":
    main()

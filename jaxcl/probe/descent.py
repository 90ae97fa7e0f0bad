"""What is learned by gradient descent: linear probes, usually with augmentation, and fine-tuning."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax

from jaxcl import data, evaluators, models, optim
from jaxcl import mesh as mesh_lib
from jaxcl.data import Sampler, Source
from jaxcl.evaluators import LayerModel, Row
from jaxcl.optim import OptimConfig
from jaxcl.probe.grid import TRANSFER, TRANSFER_SCRATCH, Choice, Grid, search
from jaxcl.probe.networks import TRAINED, UNTRAINED, Networks, with_share
from jaxcl.probe.recipes import LINEAR, LINEAR_SGD, USUAL_CROP, linear_recipe
from jaxcl.views import EvalView, ViewProgram, ViewsConfig, build_program, presets

PyTree = Any

FINETUNE = {
    "v1": dataclasses.replace(LINEAR_SGD, base_lr=0.05),
    # The classifier is neither decayed nor layer-adapted: from its zeros a trust ratio would not let it go.
    "v2": OptimConfig(
        name="lars",
        base_lr=0.005,
        scaling="sqrt",
        warmup_epochs=0.0,
        weight_decay=0.0,
        excluded=(r"(^|/)(scale|bias)$", r"^classifier/"),
    ),
}
# Above 2 % of the labels; below, both take 60.
FINETUNE_EPOCHS = {"v1": 30.0, "v2": 60.0}
SCRATCH = dataclasses.replace(LINEAR_SGD, weight_decay=1e-4)
TRANSFER_STEPS = 20_000
"""Updates of the recipe "transfer"; the paper's control from scratch has twice as many."""

BATCH_SIZE = 256

FEW_UPDATES = 500
"""Fewer are said to be few."""

LOWER = "give a lower --lr"


@dataclasses.dataclass(frozen=True)
class Descent(Networks):
    """The networks of a probe, trained further on its splits.

    Attributes:
      grid: learning rates and weight decays of the recipe "transfer".
      scratch_grid: those of its control from scratch.
      choices: what was chosen from them, by (network, level, content of the images to learn from and
        to score): splits that share these images share the choice.
      left_out: a line about each training that diverged or had too few images, and so has no row.
    """

    grid: Grid = TRANSFER
    scratch_grid: Grid = TRANSFER_SCRATCH
    choices: dict[tuple[str, int, str, str], Choice | None] = dataclasses.field(
        default_factory=dict
    )
    left_out: list[str] = dataclasses.field(default_factory=list)

    def linear_sgd(self, name: str, variables: PyTree) -> list[Row]:
        """The linear probe by the recipe of the options, for each level and share of the labels."""
        rows = []
        paper = linear_recipe(self.options.recipe)
        epochs = self.options.epochs or paper.epochs
        for level_name, share, task in self.tasks(paper.smallest_crop):
            recipe = dataclasses.replace(
                self.recipe(self.at_lr(paper.over(epochs)), epochs),
                batch_size=self.options.batch_size or paper.batch_size,
                init_std=paper.init_std,
                normalize=paper.normalize,
                smoothing=paper.smoothing,
            )
            self.say(name, "linear by SGD", level_name, share, recipe)
            method = with_share("sgd", share)
            with self.unless_it_fails(name, method, level_name):
                trained = evaluators.linear_sgd(task, self.network, variables, recipe)
                named = {"recipe": self.options.recipe} if self.options.recipe in LINEAR else {}
                rows += [
                    dataclasses.replace(row, settings=row.settings | named)
                    for row in Row.with_top5(name, level_name, trained.result, method)
                ]
        return rows

    def finetune(self, variables: PyTree, key: jax.Array) -> list[Row]:
        """Fine-tuning, and beside it the same network from scratch on the same labels."""
        starts = {TRAINED: variables}
        if self.options.scratch:
            starts[UNTRAINED] = jax.jit(
                lambda: self.network.init(key, self.shape),
                out_shardings=mesh_lib.replicated(self.mesh),
            )()
        rows = []
        for level_name, share, task in self.tasks():
            for name, start in starts.items():
                advice = LOWER if name == TRAINED else "--scratch=0 goes without this control"
                with self.unless_it_fails(name, with_share("finetune", share), level_name, advice):
                    rows.append(self.tuned(name, start, level_name, share, task))
        return rows

    @contextlib.contextmanager
    def unless_it_fails(
        self, name: str, method: str, level_name: str, advice: str = LOWER
    ) -> Iterator[None]:
        """A training within that diverges or has too few images is said and left out: the others keep their rows."""
        try:
            yield
        except (FloatingPointError, evaluators.TooFewImages) as error:
            reason = f"{error}; {advice}" if isinstance(error, FloatingPointError) else str(error)
            test = self.splits.names["test"]
            self.left_out.append(f"{name}, {method} of {level_name} on {test!r}: {reason}")
            self.console.print(f"left out: {self.left_out[-1]}")

    def tuned(
        self, name: str, variables: PyTree, level_name: str, share: float, task: evaluators.Task
    ) -> Row:
        """One network trained on one task, by the recipe of the options.

        Raises:
          FloatingPointError: the training diverges.
        """
        scratch = name == UNTRAINED
        factor = self.options.scratch if scratch else 1.0
        what = "trained from scratch" if scratch else "fine-tuned"
        chosen: dict[str, float] = {}
        if self.options.recipe == "transfer":
            choice = self.choose(name, variables, level_name, share, task.level)
            recipe = self.transfer(choice.rate, choice.decay, factor)
            chosen = {
                "learning_rate": choice.rate,
                "weight_decay": choice.decay / choice.rate,
                "validation": choice.validation,
            }
            what += f" at learning rate {choice.rate:.3g}, weight decay {choice.decay:.3g} / rate"
        else:
            settings = SCRATCH if scratch else self.at_lr(FINETUNE[self.options.recipe])
            usual = 60.0 if share <= 0.02 else FINETUNE_EPOCHS[self.options.recipe]
            recipe = self.recipe(settings, factor * (self.options.epochs or usual))
        self.say(name, what, level_name, share, recipe)
        trained = evaluators.finetune(task, self.trainable(task), variables, recipe)
        if not scratch:
            self.advise_longer(trained.result, recipe)
        row = Row.of(name, level_name, trained.result, with_share("finetune", share))
        return dataclasses.replace(row, settings=row.settings | chosen)

    def choose(
        self, name: str, variables: PyTree, level_name: str, share: float, level: int
    ) -> Choice:
        """The learning rate and weight decay with which the validation images are classified best.

        Raises:
          FloatingPointError: the training diverges with every pair of the grid.
        """
        train, validation = (
            self.part(source, level, share) for source in self.where_settings_are_chosen()
        )
        key = (name, level, train.content_id, validation.content_id)
        if key not in self.choices:
            task = dataclasses.replace(self.task(train, level), test=validation)
            self.choices[key] = self.searched(name, variables, level_name, share, task)
        choice = self.choices[key]
        if choice is None:
            raise FloatingPointError("the loss is not finite at any pair of the grid")
        return choice

    def searched(
        self, name: str, variables: PyTree, level_name: str, share: float, task: evaluators.Task
    ) -> Choice | None:
        """The best pair of the network's grid; None if the training diverges with all of them."""
        network = self.trainable(task)
        grid, factor = self.grid, 1.0
        if name == UNTRAINED:
            grid, factor = self.scratch_grid, self.options.scratch
        elif self.options.lr:
            grid = dataclasses.replace(grid, rates=(self.options.lr,))

        def score(rate: float, decay: float) -> float:
            recipe = self.transfer(rate, decay, factor)
            return evaluators.finetune(task, network, variables, recipe).result.accuracy

        self.console.print(
            f"{name}: {len(grid)} pairs of learning rate and weight decay, chosen on"
            f" {self.splits.names['validation']!r}: {level_name}, {share:.0%} of the labels ..."
        )
        return search(grid, score, self.console.print)

    def where_settings_are_chosen(self) -> tuple[Source, Source]:
        """(to learn from, to score) while settings are chosen, as for features."""
        splits = self.splits
        if splits.train is not None and splits.validation is not None:
            return splits.train, splits.validation
        held = self.held_out(splits.last)
        rows = (np.flatnonzero(~held), np.flatnonzero(held))
        return data.subset(splits.last, rows[0]), data.subset(splits.last, rows[1])

    def trainable(self, task: evaluators.Task) -> LayerModel:
        """The network as it is fine-tuned: on other data its BatchNorm has the momentum for them."""
        if not (self.options.data or self.options.recipe == "transfer"):
            return self.network
        per_epoch = max(1, len(task.train) // self.batch_size)
        momentum = evaluators.transfer_bn_momentum(per_epoch)
        backbone = dataclasses.replace(self.config.model, bn_momentum=momentum)
        return self.network.layer.of(models.build(backbone, self.config.build_method().heads))

    def tasks(
        self, smallest_crop: float = USUAL_CROP
    ) -> Iterator[tuple[str, float, evaluators.Task]]:
        """(level, share of the labels, task) for each combination that was asked for."""
        for name, level in self.levels.items():
            for share in self.options.labels:
                train = self.part(self.splits.last, level, share)
                yield name, share, self.task(train, level, smallest_crop)

    def part(self, source: Source, level: int, share: float) -> Source:
        """The share of the images of each class."""
        return source if share == 1 else data.subset(source, self.some(source, level, share))

    def task(self, train: Source, level: int, smallest_crop: float = USUAL_CROP) -> evaluators.Task:
        """Crops and flips for training, or without a `smallest_crop` what test images get: the centre."""
        size, views = self.shape[0], None
        if smallest_crop:
            views = build_program(
                ViewsConfig(**presets.crop_flip(size, smallest_crop=smallest_crop))
            )
        return evaluators.Task(
            train=train,
            test=self.splits.test,
            level=level,
            views=views,
            view=self.centre,
            image_shape=self.shape,
            feed=functools.partial(self.feed, views),
            test_batches=functools.partial(self.batches, view=self.centre),
            sharding=mesh_lib.batch_sharding(self.mesh),
        )

    @property
    def centre(self) -> EvalView:
        """Of the images on which a trained network is tested, on other data too: SimCLR's centre."""
        return EvalView(self.shape[0])

    def feed(
        self, views: ViewProgram | None, source: Source, sampler: Sampler, steps: int
    ) -> Iterator[Mapping[str, jax.Array]]:
        """Training batches, on the devices; without `views` of whole images, as in a test."""
        settings = self.config.data
        if views is None:
            settings = dataclasses.replace(settings, crop="device")
            if settings.image_size:
                side, _, _ = data.image_shape(source, settings, self.centre)
                settings = dataclasses.replace(settings, image_size=side)
        batches = data.train_batches(
            source,
            sampler,
            settings,
            0,
            steps,
            process_index=mesh_lib.process_index(),
            process_count=mesh_lib.process_count(),
            views=views,
            crop_seed=self.options.seed,
        )
        for batch in batches:
            self.skipped.count(batch, source)
            yield mesh_lib.to_global(self.mesh, data.arrays(batch))

    @property
    def batch_size(self) -> int:
        """Images at once in fine-tuning."""
        return self.options.batch_size or BATCH_SIZE

    def at_lr(self, settings: OptimConfig) -> OptimConfig:
        """The settings, with the learning rate of the options if they have one."""
        return dataclasses.replace(settings, base_lr=self.options.lr or settings.base_lr)

    def transfer(self, rate: float, decay: float, factor: float) -> evaluators.Recipe:
        """SimCLR's recipe for other data at one pair of a grid, `factor` times as long."""
        settings = dataclasses.replace(LINEAR_SGD, base_lr=rate, weight_decay=decay / rate)
        if self.options.epochs:
            return self.recipe(settings, factor * self.options.epochs)
        return self.recipe(settings, steps=max(1, round(factor * TRANSFER_STEPS)))

    def recipe(
        self, settings: OptimConfig, epochs: float = 0.0, steps: int = 0
    ) -> evaluators.Recipe:
        """Optimizer and schedule of the settings, over so many epochs or steps."""

        def optimizer(
            params: PyTree, steps: int, per_epoch: int, batch: int
        ) -> optax.GradientTransformation:
            schedule = optim.make_schedule(settings, steps, per_epoch, batch)
            return optim.make_optimizer(settings, params, schedule)

        return evaluators.Recipe(epochs, self.batch_size, optimizer, self.options.seed, steps)

    def advise_longer(self, result: evaluators.ClassifierResult, recipe: evaluators.Recipe) -> None:
        """The papers' epochs are of millions of images: of a few they are hardly any updates."""
        if result.steps < FEW_UPDATES and not (self.options.epochs or recipe.steps):
            epochs = math.ceil(recipe.epochs * FEW_UPDATES / result.steps)
            self.console.print(
                f"  {recipe.epochs:g} epochs of {result.trained_on:,} images were {result.steps} updates of the weights,"
                f" which is little: --epochs={epochs} makes them {FEW_UPDATES}"
            )

    def say(
        self, name: str, what: str, level: str, share: float, recipe: evaluators.Recipe
    ) -> None:
        """What is being trained, which takes a while."""
        length = f"{recipe.steps:,} steps" if recipe.steps else f"{recipe.epochs:g} epochs"
        self.console.print(f"{name} {what}: {level}, {share:.0%} of the labels, {length} ...")

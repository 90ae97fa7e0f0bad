"""What is learned by gradient descent: linear probes with augmentation, and fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import optax

from jaxcl import data, evaluators, models, optim
from jaxcl import mesh as mesh_lib
from jaxcl.data import Sampler, Source
from jaxcl.evaluators import Row
from jaxcl.optim import OptimConfig
from jaxcl.probe.networks import TRAINED, UNTRAINED, Networks, with_share
from jaxcl.views import EvalView, ViewsConfig, build_program, presets

PyTree = Any

LINEAR_SGD = OptimConfig(
    name="sgd", base_lr=0.1, warmup_epochs=0.0, momentum=0.9, nesterov=True, weight_decay=0.0
)
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


@dataclasses.dataclass(frozen=True)
class Descent(Networks):
    """The networks of a probe, trained further on its splits."""

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
            usual = 60.0 if share <= 0.02 else FINETUNE_EPOCHS[self.options.recipe]
            epochs = self.options.epochs or usual
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

"""Classifiers trained by gradient descent on labelled images, and their scores.

One loop serves the linear probe with augmentation (SimCLR 4.1 and B.6: a frozen encoder in
evaluation mode, crops and flips), fine-tuning of the whole network (B.5, B.8; version 2: from a
layer of the projection head), and the same network trained from scratch. They differ in what is
trained and from where it starts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl import data
from jaxcl.data import Sampler, Source
from jaxcl.evaluators.base import Batches, Classes, make_extractor, score, top_score
from jaxcl.evaluators.layers import LayerModel
from jaxcl.losses import cross_entropy, normalize
from jaxcl.views import EvalView, ViewProgram

PyTree = Any

Feed = Callable[[Source, Sampler, int], Iterator[Mapping[str, jax.Array]]]
"""(source, sampler, steps) -> that many batches of `data.train_batches`, on the devices."""

MakeOptimizer = Callable[[PyTree, int, int, int], optax.GradientTransformation]
"""(parameters, steps, steps per epoch, batch size) -> the optimizer with its schedule."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learned and what is scored.

    Attributes:
      train: labelled images to learn from; those without a label at the level are left out.
      test: images to score.
      level: label level, negative from the finest.
      views: one view of each training image; None for `view`, without augmentation.
      view: of the test images.
      image_shape: (h, w, C) of a view.
      feed: brings training batches to the devices.
      test_batches: the batches of an evaluation of a source.
      sharding: of batches, None for the default device; see `make_extractor`.
    """

    train: Source
    test: Source
    level: int
    views: ViewProgram | None
    view: EvalView
    image_shape: tuple[int, int, int]
    feed: Feed
    test_batches: Callable[[Source], Batches]
    sharding: jax.sharding.NamedSharding | None = None

    def __post_init__(self) -> None:
        if self.views is not None and len(self.views.views) != 1:
            raise ValueError(
                f"a classifier learns from one view of each image, got {len(self.views.views)}"
            )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How long, in what batches and by which optimizer.

    Attributes:
      epochs: passes over the training images; at least one step is made. Or 0, with steps.
      batch_size: images at once; fewer where there are fewer images.
      optimizer: see `MakeOptimizer`. The trained parameters are "classifier" (kernel and bias) and,
        unless they are frozen, those of the network.
      seed: of the order and the views.
      steps: updates, however many images there are; 0 for so many epochs.
      init_std: standard deviation of the classifier's first weights; 0: zeros, as in SimCLR.
      normalize: the classifier stands on features of length 1 (SupCon, Google's code).
      smoothing: share of the target that is spread evenly over all classes.
    """

    epochs: float
    batch_size: int
    optimizer: MakeOptimizer
    seed: int = 0
    steps: int = 0
    init_std: float = 0.0
    normalize: bool = False
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if (self.epochs > 0) == (self.steps > 0) or min(self.epochs, self.steps) < 0:
            raise ValueError(
                f"epochs={self.epochs}, steps={self.steps}: expected one of them above 0, the other 0"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: expected 1 or more")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing={self.smoothing}: expected 0 <= value < 1")


class TooFewImages(ValueError):
    """Training images that do not fill one batch."""


@dataclasses.dataclass(frozen=True)
class ClassifierResult:
    """A trained classifier's score.

    Attributes:
      accuracy: on the test images.
      train_loss: mean cross-entropy with the targets (smoothed if so) over the last epoch of training, on augmented images.
      first_loss: that of the first step.
      queries: test images scored.
      unlabelled: test images left out, having no label at this level.
      unseen: test images of classes not in training; they are scored, as wrong.
      trained_on: training images with labels.
      classes: number of classes.
      steps: updates made.
      batch_size: images of each update.
      top5: top-5 accuracy on the test images; None of few classes.
    """

    accuracy: float
    train_loss: float
    first_loss: float
    queries: int
    unlabelled: int
    unseen: int
    trained_on: int
    classes: int
    steps: int
    batch_size: int
    top5: float | None = None

    def scalars(self, prefix: str) -> dict[str, float]:
        """{prefix + "accuracy"|"train_loss": value}, for a log."""
        return {f"{prefix}accuracy": self.accuracy, f"{prefix}train_loss": self.train_loss}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A result and the network behind it.

    Attributes:
      result: the score.
      params: "classifier", and the network's if it was trained.
      variables: {"params", "batch_stats"} of the network after training.
    """

    result: ClassifierResult
    params: PyTree
    variables: PyTree


def linear_sgd(task: Task, network: LayerModel, variables: PyTree, recipe: Recipe) -> Trained:
    """Trains a linear classifier on the frozen network, which stays in evaluation mode.

    Args:
      task: the data.
      network: up to the layer that is probed.
      variables: {"params", "batch_stats"} of the network; not changed.
      recipe: SimCLR's is Nesterov momentum 0.9, learning rate 0.1 * B / 256, 90 epochs at B = 4096,
        without weight decay.

    Raises:
      ValueError: fewer than two classes, or no labelled test image.
      TooFewImages: there are fewer training images than devices.
    """

    def apply(
        params: PyTree, frozen: PyTree, images: jax.Array, train: bool
    ) -> tuple[jax.Array, PyTree]:
        del train
        return _logits(params["classifier"], network.encode(frozen, images), recipe), frozen

    trained = _Training(task, recipe, apply).run(
        lambda classes: {"classifier": _classifier(network, variables, task, classes, recipe)},
        variables,
    )
    return dataclasses.replace(trained, variables=variables)


def finetune(task: Task, network: LayerModel, variables: PyTree, recipe: Recipe) -> Trained:
    """Trains the whole network, up to its layer, and a linear classifier on top.

    BatchNorm uses the statistics of the batch, and its running ones go on from the given ones.

    Args:
      task: the data.
      network: up to the layer on which the classifier stands; its `bn_momentum` applies.
      variables: {"params", "batch_stats"} to start from: a checkpoint's, or new ones for the
        supervised control. They are not changed; what the layer does not depend on is left out.
      recipe: SimCLR's is Nesterov momentum 0.9, learning rate 0.05 * B / 256 without warm-up,
        60 epochs for 1 % of the labels and 30 for 10 % (B.5).

    Raises:
      ValueError: fewer than two classes, or no labelled test image.
      TooFewImages: there are fewer training images than devices.
    """

    variables = network.select(variables)

    def apply(
        params: PyTree, stats: PyTree, images: jax.Array, train: bool
    ) -> tuple[jax.Array, PyTree]:
        features, stats = network.apply(params, stats, images, train)
        return _logits(params["classifier"], features, recipe), stats

    trained = _Training(task, recipe, apply).run(
        lambda classes: {
            **variables["params"],
            "classifier": _classifier(network, variables, task, classes, recipe),
        },
        variables["batch_stats"],
    )
    params = {k: v for k, v in trained.params.items() if k != "classifier"}
    return dataclasses.replace(
        trained, variables={"params": params, "batch_stats": trained.variables}
    )


def transfer_bn_momentum(steps_per_epoch: int) -> float:
    """BatchNorm's momentum for fine-tuning on another data set: max(1 - 10 / s, 0.9) (B.8)."""
    return max(1 - 10 / steps_per_epoch, 0.9)


@dataclasses.dataclass(frozen=True)
class _Training:
    """One classifier's training and score.

    Attributes:
      task, recipe: as given.
      apply: (params, state, images, train) -> (logits f[N, C], state).
    """

    task: Task
    recipe: Recipe
    apply: Callable[[PyTree, PyTree, jax.Array, bool], tuple[jax.Array, PyTree]]

    def run(self, make_params: Callable[[int], PyTree], state: PyTree) -> Trained:
        task, recipe = self.task, self.recipe
        classes = Classes.of(task.train.labels, task.level)
        if len(classes) < 2:
            raise ValueError(
                f"a classifier at level {task.level}: {len(classes)} class(es) have training "
                "images, at least 2 are needed"
            )
        train = task.train
        numbers = classes.number(train.labels)
        if (numbers < 0).any():
            train = data.subset(train, np.flatnonzero(numbers >= 0))
            numbers = numbers[numbers >= 0]
        batch_size = self._batch_size(len(train))
        sampler = data.Uniform(len(train), batch_size, recipe.seed)
        steps = recipe.steps or max(1, math.ceil(recipe.epochs * sampler.steps_per_epoch))
        params = make_params(len(classes))
        tx = recipe.optimizer(params, steps, sampler.steps_per_epoch, batch_size)
        params, state, losses = self._descend(params, state, tx, train, numbers, sampler, steps)
        logits, truth = self._scores(params, state, classes)
        accuracy, queries, unlabelled, unseen = score(logits.argmax(1), truth)
        result = ClassifierResult(
            accuracy=accuracy,
            train_loss=float(np.mean(losses[-sampler.steps_per_epoch :])),
            first_loss=losses[0],
            queries=queries,
            unlabelled=unlabelled,
            unseen=unseen,
            trained_on=len(train),
            classes=len(classes),
            steps=steps,
            batch_size=batch_size,
            top5=top_score(logits, truth),
        )
        return Trained(result, params, state)

    def _batch_size(self, examples: int) -> int:
        """The recipe's, or the largest that the examples fill and the devices divide."""
        sharding = self.task.sharding
        devices = 1 if sharding is None else sharding.num_devices
        size = min(self.recipe.batch_size, examples) // devices * devices
        if not size:
            raise TooFewImages(
                f"{examples} training images in batches of {self.recipe.batch_size} do not fill a "
                f"batch over {devices} devices: use fewer devices, or more labels"
            )
        return size

    def _descend(
        self,
        params: PyTree,
        state: PyTree,
        tx: optax.GradientTransformation,
        train: Source,
        numbers: np.ndarray,
        sampler: Sampler,
        steps: int,
    ) -> tuple[PyTree, PyTree, list[float]]:
        task, recipe = self.task, self.recipe

        @jax.jit
        def step(
            params: PyTree,
            state: PyTree,
            opt_state: PyTree,
            batch: Mapping[str, jax.Array],
            targets: jax.Array,
            key: jax.Array,
        ) -> tuple[PyTree, PyTree, PyTree, jax.Array]:
            images = batch["image"]
            if task.views is None:
                views = task.view(images)
            else:
                keys = jax.random.split(key, len(images))
                crop = {
                    k.removeprefix("crop/"): v for k, v in batch.items() if k.startswith("crop/")
                }
                views = task.views(keys, images, crop or None).images[:, 0]

            def loss(params: PyTree) -> tuple[jax.Array, PyTree]:
                logits, new = self.apply(params, state, views, True)
                wanted = targets[batch["index"]]
                return cross_entropy(logits, wanted, recipe.smoothing), new

            (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
            updates, opt_state = tx.update(gradient, opt_state, params)
            return optax.apply_updates(params, updates), new, opt_state, value

        # Arguments, not constants: the same task on another network is found in the compile cache.
        targets, key = jnp.asarray(numbers), jax.random.key(self.recipe.seed)
        opt_state = tx.init(params)
        losses = []
        for n, batch in enumerate(task.feed(train, sampler, steps)):
            params, state, opt_state, value = step(
                params, state, opt_state, batch, targets, jax.random.fold_in(key, n)
            )
            losses.append(value)
        history = [float(v) for v in losses]
        if not np.isfinite(history).all():
            first = int(np.flatnonzero(~np.isfinite(history))[0])
            raise FloatingPointError(
                f"the classifier's loss is not finite from step {first + 1} of {steps} on: lower "
                "its learning rate"
            )
        return params, state, history

    def _scores(
        self, params: PyTree, state: PyTree, classes: Classes
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits f32[N, C] of the test images, and the numbers of their classes."""
        extract = make_extractor(
            lambda trees, images: self.apply(trees[0], trees[1], images, False)[0],
            self.task.view,
            self.task.sharding,
        )
        logits = extract((params, state), self.task.test_batches(self.task.test))
        return logits.h, classes.number(logits.labels)


def _classifier(
    network: LayerModel, variables: PyTree, task: Task, classes: int, recipe: Recipe
) -> dict[str, jax.Array]:
    """A classifier as it starts, with biases of zero."""
    shape = (network.width(variables, task.image_shape), classes)
    kernel = jnp.zeros(shape)
    if recipe.init_std:
        kernel = recipe.init_std * jax.random.normal(jax.random.key(recipe.seed), shape)
    return {"kernel": kernel, "bias": jnp.zeros(classes)}


def _logits(params: PyTree, features: jax.Array, recipe: Recipe) -> jax.Array:
    if recipe.normalize:
        features = normalize(features)
    return features @ params["kernel"] + params["bias"]

"""What the features still know of a transformation: rotation, or anything that a view program draws.

An encoder that was trained to be invariant to a factor cannot tell its value. The task (Gidaris et
al. 2018 for rotation; Xiao et al. 2021 as a test of invariance) transforms every image, takes
frozen features, and predicts the factor from them by logistic regression, whose penalty is chosen on
validation images. `Rotation` is the four quarter turns; `Drawn` is any parameter of any op.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.evaluators.base import Alter, Features
from jaxcl.evaluators.linear import SHORT_GRID, linear_probe
from jaxcl.views import OPS, Crop, Rotate, View, ViewProgram

Take = Callable[[Sequence[str], Alter], list[Features]]
"""(splits, alter) -> features of their altered images; splits are "train", "validation", "last" and
"test"."""

SPLITS = ("train", "validation", "last", "test")

SAMPLE = 4096
"""Draws from which the classes of a parameter are made."""

MOST = 65_536
"""Altered images, all copies counted, that a task is learned from: of larger splits a sample is taken."""

_FACTOR = re.compile(r"(run:)?([^.:\[\]]+)\.(\w+)(?:\[(\d+(?:,\d+)*)\])?")


class FactorTask(Protocol):
    """A factor that is given to images and then predicted."""

    @property
    def name(self) -> str:
        """Of the task, in rows."""

    @property
    def classes(self) -> int:
        """Values that are told apart."""

    @property
    def copies(self) -> int:
        """How often each image is used, each time with a value of its own."""

    def alter(self, copy: int) -> Alter:
        """Transforms images and labels them with the class i32[b, 1]; -1 is not asked about."""


@dataclasses.dataclass(frozen=True)
class FactorResult:
    """How well a factor is predicted.

    Attributes:
        accuracy: on the test images.
        chance: accuracy of always naming the most frequent class.
        classes: values that are told apart.
        queries: test images scored, each copy counted.
        trained_on: images of the last fit, each copy counted.
        left_out: images that could be learned from and were not sampled, each counted once.
        l2: the penalty chosen on the validation images.
        validation: accuracy there.
        converged: whether the last fit met its tolerance.
    """

    accuracy: float
    chance: float
    classes: int
    queries: int
    trained_on: int
    left_out: int
    l2: float
    validation: float
    converged: bool

    def scalars(self, prefix: str = "rotation/") -> dict[str, float]:
        """{prefix + "accuracy": value}, for a log or a table."""
        return {f"{prefix}accuracy": self.accuracy}


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Each image in all its four quarter turns; chance is 1/4. Images must be square."""

    name: str = "rotation"
    classes: int = 4
    copies: int = 4

    def alter(self, copy: int) -> Alter:
        """Turns the images by `copy` quarters, counter-clockwise."""
        return functools.partial(_turned, copy)


@jax.jit
def _turned(turn: jax.Array, images: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    params = {"on": jnp.ones((), bool), "angle": 90.0 * turn}
    turned = jax.vmap(lambda image: Rotate().apply(image, params))(images)
    return turned, jnp.full((len(index), 1), turn, jnp.int32)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A parameter that a view program draws, for each image and copy anew.

    A parameter of few values (an angle of four, a coin, an order) has one class a value; one from a
    range is cut into `bins` equally likely parts. What decides is a sample of the draws, so that all
    data have the same classes. Where the op's own coin is off, the image is not asked about, unless
    it is about the coin (the parameter "on").

    Attributes:
        program: a program whose first view is taken; its images have the shape of the given ones.
        op: name of the op in the program.
        parameter: name among what the op draws.
        component: which number of a parameter that is an array; () for one that is a number, or that
            has few values as a whole.
        bins: classes of a parameter from a range.
        copies: draws an image.
        seed: of the draws.
        shape: (H, W, C) of the images.
    """

    program: ViewProgram
    op: str
    parameter: str
    component: tuple[int, ...] = ()
    bins: int = 4
    copies: int = 4
    seed: int = 0
    shape: tuple[int, int, int] = (32, 32, 3)

    def __post_init__(self) -> None:
        if self.op not in dict(self.program.ops):
            raise ValueError(
                f"there is no op {_nearest(self.op, [n for n, _ in self.program.ops])}"
            )
        drawn = jax.eval_shape(self._draw, jax.random.key(0))
        if self.parameter not in drawn:
            raise ValueError(f"op {self.op!r} draws no {_nearest(self.parameter, list(drawn))}")
        shape = drawn[self.parameter].shape
        fits = len(self.component) == len(shape) and all(
            i < size for i, size in zip(self.component, shape, strict=True)
        )
        if self.component and not fits:
            raise ValueError(
                f"{self.name}: {self.op}.{self.parameter} has the shape {list(shape)}; expected {len(shape)} "
                "number(s) in brackets, each below the size there"
            )
        if self.bins < 2 or self.copies < 1:
            raise ValueError(f"bins={self.bins}, copies={self.copies}: expected 2 and 1 or more")
        if self.program.output_shape(self.shape) != self.shape:
            raise ValueError(
                f"the program makes {self.program.output_shape(self.shape)} of {self.shape}: a "
                "factor is predicted from images of their own shape; give its crop that size"
            )
        if not len(self._sample):
            raise ValueError(f"{self.name}: the op is never applied; give it a probability above 0")
        if self._values is None and not self.component and shape:
            raise ValueError(
                f"{self.name} has the shape {list(shape)} and more than {self.most} values: only single numbers "
                f"can be cut into classes; name one, as in {self.name}[{','.join('0' * len(shape))}]"
            )
        if self.classes < 2:
            raise ValueError(f"{self.name} has only one value: there is nothing to predict")

    @property
    def name(self) -> str:
        """ "op.parameter" or "op.parameter[0,1]"."""
        place = f"[{','.join(map(str, self.component))}]" if self.component else ""
        return f"{self.op}.{self.parameter}{place}"

    @property
    def most(self) -> int:
        """Values up to which each is a class."""
        return max(self.bins, 24)

    @property
    def classes(self) -> int:
        """Values, or parts of the range."""
        return self.bins if self._values is None else len(self._values)

    def _draw(self, key: jax.Array) -> dict[str, jax.Array]:
        """What the op draws for one image in the first view."""
        drawn = self.program.draw(key, self.shape)[self.op]
        return {name: value[0] for name, value in drawn.items()}

    @functools.cached_property
    def _sample(self) -> np.ndarray:
        """f or i [SAMPLE, ...], drawn independently of the images."""
        keys = jax.random.split(jax.random.key(self.seed), SAMPLE)
        drawn = jax.jit(jax.vmap(self._draw))(keys)
        return np.asarray(self._asked(drawn))[np.asarray(self._counts(drawn))]

    def _asked(self, drawn: dict[str, jax.Array]) -> jax.Array:
        """The parameter, or its component, of draws [N, ...]."""
        return drawn[self.parameter][(slice(None), *self.component)]

    def _counts(self, drawn: dict[str, jax.Array]) -> jax.Array:
        """Which draws are asked about: bool[N]."""
        return drawn["on"] if self.parameter != "on" else jnp.ones_like(drawn["on"])

    @functools.cached_property
    def _values(self) -> np.ndarray | None:
        """The values, sorted, if they are few."""
        values = np.unique(self._sample, axis=0)
        return values if len(values) <= self.most else None

    @functools.cached_property
    def _edges(self) -> np.ndarray:
        """The inner borders of the parts of the range."""
        return np.quantile(self._sample, np.arange(1, self.bins) / self.bins)

    def alter(self, copy: int) -> Alter:
        """Applies the program's first view and labels with the class of the parameter."""
        return functools.partial(self._compiled, copy)

    @functools.cached_property
    def _compiled(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        first = ViewProgram(self.program.ops, self.program.views[:1])
        key = jax.random.key(self.seed)

        @jax.jit
        def alter(
            copy: jax.Array, images: jax.Array, index: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, copy), index)
            made = first(keys, images)
            drawn = {name: value[:, 0] for name, value in made.drawn[self.op].items()}
            value = self._asked(drawn)
            if self._values is None:
                number = jnp.searchsorted(jnp.asarray(self._edges, value.dtype), value)
            else:
                same = value[:, None] == jnp.asarray(self._values)[None]
                number = same.reshape(*same.shape[:2], -1).all(2).argmax(1)
            label = jnp.where(self._counts(drawn), number, -1).astype(jnp.int32)
            return made.images[:, 0], label[:, None]

        return alter


@dataclasses.dataclass(frozen=True)
class Factor:
    """The text "[run:]OP.PARAMETER[i,j]".

    Attributes:
        run: whether the op is one of the run's views, with its settings there.
        op: its name.
        parameter: what it draws.
        component: which number of that.
    """

    run: bool
    op: str
    parameter: str
    component: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Factor:
        """Reads the text; which ops a run has is checked by `factor_of`.

        Raises:
            ValueError: another form; an unknown op, with the nearest name.
        """
        found = _FACTOR.fullmatch(text)
        if not found:
            raise ValueError(
                f"factor {text!r}: expected OP.PARAMETER, as in jitter.hue, texture.gains[0,1] for a number of an "
                "array, or run:rotate.angle for the run's own op"
            )
        run, op, parameter, place = found.groups()
        if not run and op not in OPS:
            raise ValueError(f"factor {text!r}: there is no op {_nearest(op, list(OPS))}")
        component = tuple(int(i) for i in place.split(",")) if place else ()
        return cls(bool(run), op, parameter, component)


def factor_of(
    text: str, shape: tuple[int, int, int], seed: int = 0, program: ViewProgram | None = None
) -> FactorTask:
    """The task called "rotation", or "[run:]OP.PARAMETER[i,j]" of one op.

    The op alone is applied: to every image, or by its coin if that is asked about ("flip.on"). It has its default
    settings (of the coin one half), so that runs with different views are asked the same; with "run:" it is that op
    of the run's views, by its name there and with its settings (angles, strength, probability).

    Args:
        text: for instance "jitter.hue", "blur.sigma", "flip.on", "texture.gains[0,1]", "run:rotate.angle".
        shape: (H, W, C) of the images; a crop makes images of that size.
        seed: of the draws.
        program: the run's views, for "run:".

    Raises:
        ValueError: unknown op or parameter, with the nearest name; a parameter without classes; no views.
    """
    if text == "rotation":
        return Rotation()
    asked = Factor.parse(text)
    try:
        if asked.run:
            known = dict(program.ops) if program is not None else {}
            if asked.op not in known:
                raise ValueError(f"the run's views have no op {_nearest(asked.op, list(known))}")
            op = known[asked.op]
            coin = op.prob
        else:
            op, coin = OPS[asked.op](), 0.5
        op = dataclasses.replace(op, prob=coin if asked.parameter == "on" else 1.0)
        if isinstance(op, Crop):
            op = dataclasses.replace(op, size=shape[0])
        return Drawn(
            ViewProgram(((asked.op, op),), (View(),)),
            asked.op,
            asked.parameter,
            asked.component,
            seed=seed,
            shape=shape,
        )
    except ValueError as error:
        raise ValueError(f"factor {text!r}: {error}") from error


def predict_factor(
    task: FactorTask,
    take: Take,
    l2s: Sequence[float] = SHORT_GRID,
    most: int = MOST,
    seed: int = 0,
) -> FactorResult:
    """Predicts the factor of test images, from frozen features, by logistic regression.

    All copies of an image are on the same side of every split, and all or none of them are learned from.

    Args:
        task: the factor.
        take: features of altered images.
        l2s: penalties to choose from on "validation"; the last fit is on "last".
        most: altered images of each split but "test" that are used, all copies counted; of a larger split a sample is
            kept, so that the memory needed is that of the sample and of one copy. "test" is scored whole.
        seed: of the sample.

    Raises:
        ValueError: as `linear_probe`.
    """
    parts: dict[str, list[Features]] = {split: [] for split in SPLITS}
    left_out = 0
    for copy in range(task.copies):
        for split, features in zip(SPLITS, take(SPLITS, task.alter(copy)), strict=True):
            kept = features
            if split != "test" and len(features) > (count := max(1, most // task.copies)):
                rows = np.random.default_rng(seed).choice(len(features), count, replace=False)
                kept = features.take(np.sort(rows))
            if split == "last":
                left_out = len(features) - len(kept)
            parts[split].append(kept)
    train, validation, last, test = (_together(parts.pop(split)) for split in SPLITS)
    result = linear_probe(train, validation, test, 0, l2s, refit=last)
    asked = test.labels[test.labels >= 0]
    return FactorResult(
        accuracy=result.accuracy,
        chance=float(np.max(np.bincount(asked)) / len(asked)),
        classes=task.classes,
        queries=result.queries,
        trained_on=result.trained_on,
        left_out=left_out,
        l2=result.l2,
        validation=result.validation[result.l2],
        converged=result.converged,
    )


def _together(parts: Sequence[Features]) -> Features:
    return Features(
        np.concatenate([part.h for part in parts]), np.concatenate([part.labels for part in parts])
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"{name!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")

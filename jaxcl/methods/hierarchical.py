"""HiMulCon, HiConE and HiMulConE (Zhang et al., CVPR 2022): contrastive learning of all the labels of an image.

SupCon's pipeline with labels that are paths through a tree, coarse to fine: views of every image -> encoder f -> h -> projection
head g -> z, and at every level the images that agree down to it are drawn together. Agreeing deeper counts for more (HiMulCon), or
agreeing at a coarse level must not come cheaper than at a finer one (HiConE), or both (HiMulConE). It learns more where a batch
holds relatives of every degree: `data.sampler="hierarchical"`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp

from jaxcl import losses
from jaxcl.losses.hierarchical import (
    Constraint,
    Divisor,
    Form,
    Name,
    Penalty,
    level_weights,
    preset,
)
from jaxcl.methods.base import Apply, LossOut, PyTree
from jaxcl.methods.labels import LabelLevels
from jaxcl.methods.supcon import joint_probe, probe_params, same_class
from jaxcl.models import HeadSpec
from jaxcl.views import ViewProgram, Views


@dataclasses.dataclass(frozen=True)
class Hierarchical:
    """HiMulCon, HiConE or HiMulConE.

    Attributes:
      views: views without shared parameters, usually two.
      features: width of h, for the joint probe.
      labels: what the training data have.
      projection: the head g; the authors' has one hidden layer and no BatchNorm.
      variant: "himulcon", "hicone" or "himulcone".
      form: "official" is the authors' code: the constraint is on the means of the levels, each path stands at the next coarser
        level as one image, and the loss is multiplied by tau / 0.07 and divided by one more than the number of levels. "paper" is
        the equations: the constraint is on pairs, and all images stand at all levels.
      hierarchy: names of the label levels to learn, coarse to fine; () for all. From the level on at which an image has no
        label, it agrees with nothing but its own views.
      temperature: tau.
      constraint: "none", "layer_mean", "pair_global" or "pair_anchor", in the place of the form's; "" keeps that.
      penalty: "exp", "pow2" or "constant", in the place of the variant's; "" keeps that.
      weights: of each level that is learned, coarse to fine, in the place of a penalty; () for none such.
      dedup: "on": each path stands at the next coarser level as one image; "off": all images stand at all levels; "" is as the
        form has it.
      divisor: of the sum over the levels, "levels" or "levels+1", in the place of the form's; "" keeps that.
      detach_floor: let no gradient flow through what the constraint compares with.
      level: the label level of the joint probe: its name or number; "0" is the coarsest.
      probe: train a linear classifier of that level on h, behind a stop-gradient, as in `SupCon`.
      classes: outputs of that classifier; 0 for as many as the data have.
    """

    views: ViewProgram
    features: int = 0
    labels: LabelLevels = dataclasses.field(default_factory=LabelLevels)
    projection: HeadSpec = dataclasses.field(
        default_factory=lambda: HeadSpec(
            layers=(2048, 128), batch_norm=False, bias=True, init_std=None
        )
    )
    variant: str = "himulcone"
    form: str = "official"
    hierarchy: tuple[str, ...] = ()
    temperature: float = 0.1
    constraint: str = ""
    penalty: str = ""
    weights: tuple[float, ...] = ()
    dedup: str = ""
    divisor: str = ""
    detach_floor: bool = False
    level: str = "0"
    probe: bool = True
    classes: int = 0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"method.temperature={self.temperature}: expected a number above 0")
        for field, choices in (
            ("variant", get_args(Name)),
            ("form", get_args(Form)),
            ("constraint", ("", *get_args(Constraint))),
            ("penalty", ("", *get_args(Penalty))),
            ("dedup", ("", "on", "off")),
            ("divisor", ("", *get_args(Divisor))),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"method.{field}={getattr(self, field)!r}: expected one of {', '.join(filter(None, choices))}"
                )
        if self.weights and self.penalty:
            raise ValueError(
                f"method.weights={self.weights} and method.penalty={self.penalty!r}: give one of the two"
            )
        if self.weights:
            level_weights(len(self.learned_levels) or len(self.weights), self.weights)
        if self.detach_floor and self.settings["constraint"] == "none":
            raise ValueError(
                f"method.detach_floor=True does nothing without a constraint, and {self.variant!r} has none: set"
                " method.constraint, or leave it at False"
            )
        if self.labels.names:
            self._check_labels()
            if self.probe:
                self.labels.class_count(self.level, self.classes)

    def _check_labels(self) -> None:
        names = self.labels.names
        if list(self.hierarchy) != [name for name in names if name in self.hierarchy]:
            raise ValueError(
                f"method.hierarchy={self.hierarchy}: expected some of the levels of the data, in their order: {names}"
            )
        if len(self.learned_levels) < 2:
            raise ValueError(
                f"the only label level is {self.learned_levels[0]!r}, and on one level all of these losses are SupCon: use the method"
                " 'supcon', or give data.label_keys (a table, TFDS) or data.labels='path' (a folder) more levels"
            )
        for name in self.learned_levels:
            if self.labels.classes[names.index(name)] < 2:
                raise ValueError(
                    f"label level {name!r} has one class only, and so nothing to tell apart: name the other levels in"
                    f" method.hierarchy, out of {names}"
                )

    @property
    def learned_levels(self) -> tuple[str, ...]:
        """Names of the levels that are learned, coarse to fine; () as long as the data are not known."""
        return self.hierarchy or self.labels.names

    @property
    def heads(self) -> Mapping[str, HeadSpec]:
        """One projection head."""
        return {"projection": self.projection}

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `losses.hierarchical_terms`."""
        settings = preset(self.variant, self.form, self.temperature)  # type: ignore[arg-type]
        changed = {
            "constraint": self.constraint,
            "penalty": self.weights or self.penalty,
            "divisor": self.divisor,
        }
        settings |= {name: value for name, value in changed.items() if value}
        if self.dedup:
            settings["dedup"] = self.dedup == "on"
        return settings | {"temperature": self.temperature, "detach_floor": self.detach_floor}

    def trivial_loss(self, batch_size: int) -> float | None:
        """The loss of equal embeddings, if all images stand at all levels: each costs the log of all rows but the anchor."""
        settings, levels = self.settings, len(self.learned_levels)
        if settings["dedup"] or not levels:
            return None
        rows = batch_size * len(self.views.views)
        weight = sum(level_weights(levels, settings["penalty"]))
        weight *= settings["scale"] / (levels + (settings["divisor"] == "levels+1"))
        return weight * math.log(max(rows - 1, 1))

    def init_params(self, key: jax.Array) -> PyTree:
        """The joint probe, which starts at zero.

        Raises:
          ValueError: the width of h or the number of classes is not known.
        """
        if not self.probe:
            return {}
        return probe_params(self.features, self.labels.class_count(self.level, self.classes))

    def init_extra(self, variables: PyTree, key: jax.Array) -> PyTree:
        """No state between steps."""
        return {}

    def loss(
        self,
        apply: Apply,
        params: PyTree,
        batch_stats: PyTree,
        extra: PyTree,
        batch: Mapping[str, jax.Array],
        views: Views,
        key: jax.Array,
    ) -> LossOut:
        """The loss of z = g(f(view)) and the images' paths; BN sees all views of the global batch together."""
        b, v = views.images.shape[:2]
        images = views.images.reshape(b * v, *views.images.shape[2:])
        (h, heads), batch_stats = apply(params, batch_stats, images, True, key)
        z = heads["projection"][-1].reshape(b, v, -1)
        paths = self._paths(batch["label"])
        terms = losses.hierarchical_terms(z, paths, **self.settings)
        metrics = {"same_leaf": same_class(paths[:, -1])}
        for number, name in enumerate(self.learned_levels or map(str, range(paths.shape[1]))):
            metrics[f"loss_{name}"] = terms.levels[number]
            if self.settings["constraint"] != "none" and number < paths.shape[1] - 1:
                metrics[f"floored_{name}"] = terms.floored[number]
        loss = terms.loss
        if self.probe:
            labels = self.labels.of(batch["label"], self.level)
            probed, measured = joint_probe(params["method"], h.reshape(b, v, -1), labels)
            loss, metrics = loss + probed, metrics | measured
        return LossOut(loss, batch_stats, {}, metrics, jax.lax.stop_gradient(z))

    def _paths(self, labels: jax.Array) -> jax.Array:
        """The columns i32[B,L] of the levels that are learned, of a batch's labels."""
        if not labels.shape[1]:
            raise ValueError(
                "the batch has no labels; the method learns from labels of two or more levels"
            )
        columns = [self.labels.column(name) for name in self.hierarchy]
        return jnp.stack([labels[:, column] for column in columns], axis=1) if columns else labels

    def after_update(self, extra: PyTree, params: PyTree, carry: PyTree, step: jax.Array) -> PyTree:
        """Nothing to carry."""
        return extra

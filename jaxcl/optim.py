"""Optimizers, learning-rate schedules, and which parameter gets what, decided by its path.

All optimizers are put together from optax's transformations. A path is the keys from the root of
the parameter tree joined by "/", as in "backbone/stage1_block1/conv1/kernel".
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any

OPTIMIZERS = ("lars", "sgd", "rmsprop", "adam", "adamw", "lamb")
SCALINGS = ("linear", "sqrt", "none")
SCHEDULES = ("cosine", "epoch_cosine", "constant", "step")
REFERENCE_BATCH = 256


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """An optimizer with its schedule. The defaults are SimCLR's for ImageNet.

    Attributes:
      name: "lars", "sgd", "rmsprop", "adam", "adamw" or "lamb". Weight decay is added to the gradient
        before the momentum for "lars" and "sgd", before the moments for "rmsprop" and "adam" (L2
        regularisation), and to the step for "adamw" and "lamb". "rmsprop" is TensorFlow's: its second
        moment starts at 1, and the momentum adds up steps with their learning rates.
      base_lr: learning rate, before `scaling`.
      scaling: how the peak follows the global batch size B (in images, not views): "linear" is
        base_lr * B / 256, "sqrt" is base_lr * sqrt(B), "none" is base_lr.
      warmup_epochs: epochs over which the rate rises linearly to the peak, step by step.
      warmup_steps: the same in steps; give one of the two.
      warmup_init: rate at step 0, as a part of the peak.
      schedule: what follows the warm-up: "cosine" to `end` at the last step, "constant", "step", or
        "epoch_cosine", which counts from the start of training: epoch e = 1, 2, ... of E has the rate
        at e / E of a cosine from the peak to `end`, and the warm-up rises to it (SupContrast).
      end: last rate of the cosine, as a part of the peak.
      boundaries: epochs, counted from the start of training, at which "step" multiplies by `decay`.
      decay: factor of "step".
      per_epoch: after the warm-up, keep the rate through an epoch (MoCo v1 and v2, SupContrast).
      momentum: of "lars", "sgd" and "rmsprop".
      nesterov: Nesterov's momentum, for "lars", "sgd" and "rmsprop".
      momentum_of: what the momentum buffer of "lars" adds up: "update", the step with its learning
        rate (SimCLR's code), or "gradient", the gradient with its trust ratio, and the learning
        rate acts on the sum (MoCo v3's code). The same under a constant rate only.
      b1: decay of the first moment, for "adam", "adamw" and "lamb".
      b2: decay of the second moment, of "rmsprop" too (TensorFlow's default: 0.9).
      eps: added to the root of the second moment; within the root for "rmsprop".
      weight_decay: coefficient w.
      trust_coefficient: eta of "lars": trust ratio = eta * |param| / |gradient + w * param|.
      clip_norm: largest norm of the whole gradient; 0 is no clipping.
      decayed: patterns of paths with weight decay and layer adaptation (trust ratio).
      excluded: patterns of paths without both. It decides where both match; a path that neither
        matches is an error.
      unadapted: patterns of paths without layer adaptation; None is the same as `excluded`.
      method_lr: factor of the learning rate for the method's own parameters ("method/...", such as
        proxies), which are never layer-adapted ("lars" is momentum SGD for them, "lamb" AdamW).
      method_weight_decay: their weight decay.
      frozen: patterns of paths that do not change (nor count for clip_norm).
    """

    name: str = "lars"
    base_lr: float = 0.3
    scaling: str = "linear"
    warmup_epochs: float = 10.0
    warmup_steps: int | None = None
    warmup_init: float = 0.0
    schedule: str = "cosine"
    end: float = 0.0
    boundaries: tuple[float, ...] = ()
    decay: float = 0.1
    per_epoch: bool = False
    momentum: float = 0.9
    nesterov: bool = False
    momentum_of: str = "update"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-6
    trust_coefficient: float = 0.001
    clip_norm: float = 0.0
    decayed: tuple[str, ...] = (r"(^|/)kernel$",)
    excluded: tuple[str, ...] = (r"(^|/)(scale|bias)$",)
    unadapted: tuple[str, ...] | None = None
    method_lr: float = 1.0
    method_weight_decay: float = 0.0
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field, choices in (
            ("name", OPTIMIZERS),
            ("scaling", SCALINGS),
            ("schedule", SCHEDULES),
            ("momentum_of", ("update", "gradient")),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"optim.{field}={getattr(self, field)!r}: expected one of {', '.join(choices)}"
                )
        for field in (
            "base_lr",
            "warmup_epochs",
            "weight_decay",
            "clip_norm",
            "method_lr",
            "method_weight_decay",
        ):
            value = getattr(self, field)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"optim.{field}={value}: expected a finite number, 0 or more")
        for field in ("eps", "trust_coefficient", "decay"):
            value = getattr(self, field)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"optim.{field}={value}: expected a finite number above 0")
        for field in ("momentum", "b1", "b2"):
            value = getattr(self, field)
            if not 0 <= value < 1:
                raise ValueError(f"optim.{field}={value}: expected 0 <= value < 1")
        for field in ("end", "warmup_init"):
            value = getattr(self, field)
            if not 0 <= value <= 1:
                raise ValueError(f"optim.{field}={value}: expected a part of the peak, 0 to 1")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"optim.warmup_steps={self.warmup_steps}: expected 0 or more, or None")
        if self.boundaries and self.schedule != "step":
            raise ValueError(
                f"optim.boundaries={self.boundaries} with schedule={self.schedule!r}: expected "
                "schedule='step', or no boundaries"
            )
        if self.schedule == "step" and not self.boundaries:
            raise ValueError("optim.schedule='step': expected boundaries=(epoch, ...)")
        ascending = all(a < b for a, b in zip(self.boundaries, self.boundaries[1:], strict=False))
        if not ascending or any(b <= 0 for b in self.boundaries):
            raise ValueError(
                f"optim.boundaries={self.boundaries}: expected ascending epochs above 0"
            )
        for field in ("decayed", "excluded", "unadapted", "frozen"):
            for pattern in getattr(self, field) or ():
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(
                        f"optim.{field}: {pattern!r} is no regular expression: {error}"
                    ) from error


def peak_lr(config: OptimConfig, batch: int) -> float:
    """The largest learning rate, for a global batch of `batch` images."""
    if config.scaling == "linear":
        return config.base_lr * batch / REFERENCE_BATCH
    if config.scaling == "sqrt":
        return config.base_lr * math.sqrt(batch)
    return config.base_lr


def make_schedule(
    config: OptimConfig, total_steps: int, steps_per_epoch: int, batch: int
) -> optax.Schedule:
    """Makes the learning rate as a function of the number of completed updates.

    With a warm-up of W steps and the cosine, rate(0) = 0 (`warmup_init`), rate(W) is the peak and
    rate(total_steps) = 0 (`end`). The cosine begins at the end of the warm-up; "epoch_cosine" does at
    step 0, so that it is below the peak where the warm-up meets it.

    Args:
      config: see `OptimConfig`.
      total_steps: length of the training.
      steps_per_epoch: to count epochs in steps.
      batch: global batch size in images.

    Raises:
      ValueError: a number that is not positive; a warm-up longer than the training.
    """
    for name, value in (
        ("total_steps", total_steps),
        ("steps_per_epoch", steps_per_epoch),
        ("batch", batch),
    ):
        if value < 1:
            raise ValueError(f"{name}={value}: expected 1 or more")
    peak = peak_lr(config, batch)
    warmup = config.warmup_steps
    if warmup is None:
        warmup = round(config.warmup_epochs * steps_per_epoch)
    if warmup > total_steps:
        raise ValueError(
            f"the warm-up takes {warmup} steps, the training {total_steps}: lower "
            "optim.warmup_epochs (or warmup_steps) or train longer"
        )
    top = peak
    if config.schedule == "epoch_cosine":
        whole = optax.cosine_decay_schedule(peak, total_steps, config.end)
        top = float(whole(warmup))

        def main(count: jax.Array) -> jax.Array:
            return whole(((count + warmup) // steps_per_epoch + 1) * steps_per_epoch)

    elif config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, max(total_steps - warmup, 1), config.end)
    elif config.schedule == "step":
        rise_ends = config.warmup_epochs
        if config.warmup_steps is not None:
            rise_ends = warmup / steps_per_epoch
        steps: dict[int, float] = {}
        for boundary in config.boundaries:  # some may be one step, where epochs are short
            at = max(round(boundary * steps_per_epoch) - warmup, 1)
            steps[at] = steps.get(at, 1.0) * config.decay
        if min(config.boundaries) <= rise_ends:
            raise ValueError(
                f"optim.boundaries={config.boundaries}: expected epochs after the warm-up, "
                f"which ends at step {warmup} of {steps_per_epoch} steps per epoch"
            )
        main = optax.piecewise_constant_schedule(peak, steps)
    else:
        main = optax.constant_schedule(peak)
    if config.per_epoch:
        main = _per_epoch(main, warmup, steps_per_epoch)
    if warmup:
        rise = optax.linear_schedule(peak * config.warmup_init, top, warmup)
        main = optax.join_schedules([rise, main], [warmup])
    # In 64-bit mode an int32 count would give a float32 rate.
    return lambda count: main(jnp.asarray(count, float))


def _per_epoch(schedule: optax.Schedule, warmup: int, steps_per_epoch: int) -> optax.Schedule:
    """A schedule that counts from the end of the warm-up, taken at the start of each epoch."""

    def held(count: jax.Array) -> jax.Array:
        start = (count + warmup) // steps_per_epoch * steps_per_epoch - warmup
        return schedule(jnp.maximum(start, 0))

    return held


@dataclasses.dataclass(frozen=True)
class Rule:
    """What happens to one parameter.

    Attributes:
      path: its path.
      shape: its shape.
      group: "network", "method" or "frozen".
      decay: it has weight decay.
      adapt: its step is scaled by a trust ratio ("lars" and "lamb").
    """

    path: str
    shape: tuple[int, ...]
    group: str
    decay: bool
    adapt: bool


def rules(config: OptimConfig, params: PyTree) -> PyTree:
    """A tree like `params` (arrays or their shapes) with the `Rule` of each parameter.

    Raises:
      ValueError: a parameter that no pattern matches; a frozen pattern that matches no parameter.
    """
    unadapted = config.excluded if config.unadapted is None else config.unadapted
    adaptive = config.name in ("lars", "lamb")
    unused = set(config.frozen)

    def matches(patterns: tuple[str, ...], path: str) -> bool:
        return any(re.search(pattern, path) for pattern in patterns)

    def rule(keys: Any, leaf: Any) -> Rule:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        frozen = {pattern for pattern in config.frozen if re.search(pattern, path)}
        unused.difference_update(frozen)
        shape = tuple(leaf.shape)
        if frozen:
            return Rule(path, shape, "frozen", decay=False, adapt=False)
        if path.split("/")[0] == "method":
            return Rule(path, shape, "method", decay=config.method_weight_decay > 0, adapt=False)
        excluded = matches(config.excluded, path)
        if not excluded and not matches(config.decayed, path):
            raise ValueError(
                f"parameter {path} {shape} matches no pattern of optim.decayed={config.decayed} or "
                f"optim.excluded={config.excluded}: add one to say whether it has weight decay"
            )
        decay = not excluded and config.weight_decay > 0
        return Rule(path, shape, "network", decay, adaptive and not matches(unadapted, path))

    tree = jax.tree.map_with_path(rule, params)
    if unused:
        raise ValueError(
            f"optim.frozen: {', '.join(sorted(unused))} matches no parameter; the paths are as in "
            f"{jax.tree.leaves(tree)[0].path}"
        )
    return tree


def make_optimizer(
    config: OptimConfig, params: PyTree, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Makes the optimizer.

    Args:
      config: see `OptimConfig`.
      params: the parameters, or their shapes (`jax.eval_shape`).
      schedule: learning rate by number of completed updates, from `make_schedule`.

    Raises:
      ValueError: see `rules`.
    """
    tree = rules(config, params)

    def mask(field: str) -> PyTree:
        return jax.tree.map(lambda rule: getattr(rule, field), tree)

    network = _algorithm(config, schedule, config.weight_decay, mask("decay"), mask("adapt"))
    method = _algorithm(
        config,
        lambda count: config.method_lr * schedule(count),
        config.method_weight_decay,
        True,
        False,
    )
    groups = {"network": network, "method": method, "frozen": optax.set_to_zero()}
    tx = optax.partition(groups, mask("group"))
    if config.clip_norm:
        frozen = jax.tree.map(lambda rule: rule.group == "frozen", tree)
        thaw = optax.masked(optax.set_to_zero(), frozen)
        tx = optax.chain(thaw, optax.clip_by_global_norm(config.clip_norm), tx)
    return tx


def _algorithm(
    config: OptimConfig,
    schedule: optax.Schedule,
    weight_decay: float,
    decay: PyTree,
    adapt: PyTree,
) -> optax.GradientTransformation:
    """The chain of one group; `decay` and `adapt` are trees of bools, or one for all."""
    step_size = optax.scale_by_learning_rate(schedule)
    decayed = optax.masked(optax.add_decayed_weights(weight_decay), decay)
    momentum = optax.trace(config.momentum, config.nesterov)
    moments = optax.scale_by_adam(config.b1, config.b2, config.eps)
    match config.name:
        case "lars":
            ratio = optax.scale_by_trust_ratio(trust_coefficient=config.trust_coefficient)
            adapted = optax.masked(ratio, adapt)
            last = (
                (step_size, momentum) if config.momentum_of == "update" else (momentum, step_size)
            )
            return optax.chain(decayed, adapted, *last)
        case "sgd":
            return optax.chain(decayed, momentum, step_size)
        case "rmsprop":
            scaled = optax.scale_by_rms(config.b2, config.eps, initial_scale=1.0)
            return optax.chain(decayed, scaled, step_size, momentum)
        case "adam":
            return optax.chain(decayed, moments, step_size)
        case "adamw":
            return optax.chain(moments, decayed, step_size)
        case _:  # lamb
            adapted = optax.masked(optax.scale_by_trust_ratio(), adapt)
            return optax.chain(moments, decayed, adapted, step_size)


def describe(config: OptimConfig, params: PyTree) -> str:
    """A table in words: one line for each parameter with its group, weight decay and adaptation.

    Raises:
      ValueError: see `rules`.
    """
    found = jax.tree.leaves(rules(config, params))
    width = max((len(rule.path) for rule in found), default=9)
    lines = [f"{'parameter':<{width}}  {'shape':<20}{'group':<9}{'decay':<10}adaptation"]
    for rule in found:
        coefficient = config.weight_decay if rule.group == "network" else config.method_weight_decay
        lines.append(
            f"{rule.path:<{width}}  {rule.shape!s:<20}{rule.group:<9}"
            f"{f'{coefficient:g}' if rule.decay else '-':<10}{'yes' if rule.adapt else '-'}"
        )
    total = sum(math.prod(rule.shape) for rule in found)
    decayed = sum(rule.decay for rule in found)
    adapted = sum(rule.adapt for rule in found)
    frozen = sum(rule.group == "frozen" for rule in found)
    lines.append(
        f"{len(found)} arrays, {total:,} parameters: {decayed} with weight decay, "
        f"{adapted} layer-adapted, {frozen} frozen"
    )
    return "\n".join(lines)

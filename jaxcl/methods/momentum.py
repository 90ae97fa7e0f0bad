"""The key encoder of MoCo (He et al., CVPR 2020, section 3.2): a slow copy of the trained network, with BatchNorm of its own."""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl.methods.base import Apply, PyTree
from jaxcl.methods.memory import ema
from jaxcl.methods.shuffle import Shuffle
from jaxcl.views import ViewProgram


@dataclasses.dataclass(frozen=True)
class MomentumEncoder:
    """What methods with a key encoder have in common: its settings, its passes and its update.

    Attributes:
      views: the views of each image.
      bn_groups: of the network's BatchNorms.
      total_steps: length of the training, for the momentum's schedule.
      momentum: m of the key encoder.
      momentum_schedule: "constant", or "cosine" from m to 1 over the training (version 3).
      bn: BatchNorm of the keys. "shuffle": statistics by groups, of other rows than the queries' (versions 1 and 2). "groups": of
        the same rows, which lets the queries cheat (the ablation). "global": one group for all (version 3). "ema": no statistics of
        the batch at all but the average of the query encoder's running ones (Cai et al., CVPR 2021).
    """

    views: ViewProgram
    bn_groups: int = 8
    total_steps: int = 0
    momentum: float = 0.999
    momentum_schedule: str = "constant"
    bn: str = "shuffle"

    def __post_init__(self) -> None:
        self.check_choice("momentum_schedule", ("constant", "cosine"))
        self.check_choice("bn", ("shuffle", "groups", "global", "ema"))
        self.check_share("momentum")

    def check_choice(self, field: str, choices: tuple[str, ...]) -> None:
        """Raises a ValueError unless the field is one of the choices."""
        if getattr(self, field) not in choices:
            raise ValueError(
                f"method.{field}={getattr(self, field)!r}: expected one of {', '.join(choices)}"
            )

    def check_share(self, field: str) -> None:
        """Raises a ValueError unless the field is in [0, 1]."""
        if not 0 <= getattr(self, field) <= 1:
            raise ValueError(
                f"method.{field}={getattr(self, field)}: expected a number from 0 to 1"
            )

    def check_groups(self, keys: bool = True) -> None:
        """Raises a ValueError unless `bn` suits the network's groups; `keys`: whether any are encoded."""
        if self.bn in ("shuffle", "groups") and self.bn_groups == 1 and keys:
            raise ValueError(
                f"method.bn={self.bn!r} with model.bn_groups=1, which is global: set model.bn_groups (the paper's machines:"
                " 8), or method.bn='global'"
            )
        if self.bn == "global" and self.bn_groups > 1:
            raise ValueError(
                f"method.bn='global' with model.bn_groups={self.bn_groups}: set model.bn_groups=1, or another method.bn"
            )

    def key_momentum(self, step: jax.Array) -> jax.Array | float:
        """m after `step` completed updates.

        Raises:
          ValueError: it follows a schedule whose length is not known.
        """
        if self.momentum_schedule == "constant":
            return self.momentum
        if not self.total_steps:
            raise ValueError(
                "method.momentum_schedule='cosine': the length of the training is not known: it comes from the run"
                " (Config.for_run), or give total_steps"
            )
        part = jnp.minimum(jnp.asarray(step, float) / self.total_steps, 1)
        return 1 - (1 - self.momentum) * (1 + jnp.cos(jnp.pi * part)) / 2

    def init_encoder(self, variables: PyTree, heads: Collection[str]) -> dict[str, PyTree]:
        """The key encoder, equal to the trained one: {"key_params", "key_stats"}, with these heads."""
        parts = ("backbone", *(f"head_{head}" for head in heads))
        return {
            f"key_{kind}": {part: tree[part] for part in parts if part in tree}
            for kind, tree in (("params", variables["params"]), ("stats", variables["batch_stats"]))
        }

    def encode(
        self,
        apply: Apply,
        params: PyTree,
        batch_stats: PyTree,
        images: jax.Array,
        key: jax.Array,
        heads: Collection[str],
    ) -> tuple[dict[str, jax.Array], PyTree]:
        """Keys of images float[N,h,w,C], in their order: ({head: z[N,D]}, the encoder's batch_stats)."""

        def forward(images: jax.Array, train: bool) -> tuple[dict[str, jax.Array], PyTree]:
            (_, out), new = apply(params, batch_stats, images, train, key, heads=heads)
            return {head: out[head][-1] for head in heads}, new

        if self.bn == "ema":
            return forward(images, False)[0], batch_stats
        if self.bn != "shuffle":
            return forward(images, True)
        shuffle = Shuffle.draw(key, len(images))
        z, new = forward(shuffle(images), True)
        return {head: shuffle.undo(x) for head, x in z.items()}, new

    def move_encoder(
        self, extra: PyTree, params: PyTree, batch_stats: PyTree, step: jax.Array
    ) -> dict[str, Any]:
        """The key encoder after an update.

        The papers move the key encoder before they use it, by the parameters before the step's update. Here it moves at the end
        of a step, for the next one: the same, as the first of those moves has nothing to do.

        Args:
          extra: has "key_params" and "key_stats".
          params: of the trained network, after the update.
          batch_stats: statistics after the key encoder's own passes; with bn="ema" those of the trained network.
          step: completed updates.
        """
        m = self.key_momentum(step)
        moved = ema(extra["key_stats"], batch_stats, m) if self.bn == "ema" else batch_stats
        return {"key_params": ema(extra["key_params"], params, m), "key_stats": moved}

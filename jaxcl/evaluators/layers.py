"""Which output of a network is probed: h, z, a layer of a head on the way, or all heads side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcl import losses
from jaxcl.models import Model

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Layer:
    """An output of a network.

    Attributes:
      head: name of the head; "" is the encoder's h.
      number: which of the head's layers, from 1 as in SimCLR v2; -1 is the last one, z, and -2 the
        hidden layer before it.
      together: instead of one head, heads whose layers of that number are put side by side.
    """

    head: str = ""
    number: int = -1
    together: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, heads: Sequence[str]) -> Layer:
        """Reads "h", "z", "z:HEAD", "head:K", "head:HEAD:K", "heads" or "heads:hidden".

        "heads" are the outputs of all heads side by side, each of length 1 as the losses see it, and
        "heads:hidden" their last hidden layers, after ReLU (LooC++).

        Args:
          text: what to read; HEAD may be left out where there is one head only.
          heads: the names of the network's heads.

        Raises:
          ValueError: anything else, an unknown head, or a head that must be named.
        """
        kind, *rest = text.split(":")
        if kind == "h" and not rest:
            return cls()
        if kind == "heads" and heads and rest in ([], ["hidden"]):
            return cls(number=-2 if rest else -1, together=tuple(heads))
        number = -1
        if kind == "head" and rest and rest[-1].isdecimal() and int(rest[-1]) > 0:
            number = int(rest.pop())
        elif kind != "z":
            raise ValueError(
                f"layer={text!r}: expected h, z, z:HEAD, head:K or head:HEAD:K with K from 1, heads or "
                "heads:hidden"
            )
        if not rest and len(heads) == 1:
            rest = list(heads)
        if len(rest) != 1 or rest[0] not in heads:
            raise ValueError(f"layer={text!r}: name one of the heads {list(heads)}")
        return cls(rest[0], number)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads that this output is of; () for h."""
        return self.together or ((self.head,) if self.head else ())

    @property
    def parts(self) -> tuple[str, ...]:
        """The entries of a network's parameters that this output depends on."""
        return ("backbone", *(f"head_{head}" for head in self.heads))

    def of(self, model: Model) -> LayerModel:
        """The network up to this output.

        Raises:
          ValueError: a head has fewer layers, or stands on another one.
        """
        for name in self.heads:
            below = dict(model.inputs).get(name)
            if below is not None:
                raise ValueError(
                    f"head {name!r} stands on head {below!r} and is no layer of its own to probe; name z:{below}"
                )
        heads = tuple((name, head) for name, head in model.heads if name in self.heads)
        for name, head in heads:
            layers = max(1, len(head.spec.layers))
            if self.number > layers:
                raise ValueError(
                    f"head {name!r} has {len(head.spec.layers)} layers, there is no layer "
                    f"{self.number}"
                )
            if -self.number > layers:
                raise ValueError(f"head {name!r} has no hidden layer: probe heads, or h")
        return LayerModel(dataclasses.replace(model, heads=heads), self)

    def __str__(self) -> str:
        if self.together:
            return "heads" if self.number == -1 else "heads:hidden"
        if not self.head:
            return "h"
        return f"z:{self.head}" if self.number < 0 else f"head:{self.head}:{self.number}"


@dataclasses.dataclass(frozen=True)
class LayerModel:
    """A network that ends at a layer."""

    model: Model
    layer: Layer

    def apply(
        self, params: PyTree, batch_stats: PyTree, images: jax.Array, train: bool
    ) -> tuple[jax.Array, PyTree]:
        """(features f[N, F], batch_stats) of images f[N,h,w,C] in [0,1].

        The trees hold the layer's `parts`; the new batch_stats are the given ones unless `train`.
        """
        (h, heads), batch_stats = self.model.apply(params, batch_stats, images, train)
        index = self.layer.number - (self.layer.number > 0)
        if self.layer.together:
            outputs = [heads[head][index] for head in self.layer.together]
            if self.layer.number == -1:
                outputs = [losses.normalize(z) for z in outputs]
            return jnp.concatenate(outputs, axis=1), batch_stats
        return heads[self.layer.head][index] if self.layer.head else h, batch_stats

    def encode(self, variables: PyTree, images: jax.Array) -> jax.Array:
        """Features f[N, F] in evaluation mode, of variables {"params", "batch_stats"}."""
        return self.apply(variables["params"], variables["batch_stats"], images, False)[0]

    def select(self, variables: PyTree) -> dict[str, PyTree]:
        """Of a whole network's variables, those that this output depends on."""
        return {
            kind: {part: variables[kind][part] for part in self.layer.parts if part in tree}
            for kind, tree in variables.items()
        }

    def init(self, key: jax.Array, image_shape: tuple[int, int, int]) -> dict[str, PyTree]:
        """New variables {"params", "batch_stats"}."""
        return self.model.init(key, image_shape)

    def width(self, variables: PyTree, image_shape: tuple[int, int, int]) -> int:
        """F, without computing anything."""
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        return jax.eval_shape(self.encode, variables, images).shape[1]

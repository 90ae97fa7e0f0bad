"""All embedding spaces of a run at once: the backbone's h, and the output of each head."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import checkpoint, data, models
from jaxcl import config as config_lib
from jaxcl import mesh as mesh_lib
from jaxcl.config import Config
from jaxcl.evaluators import Features, Layer, LayerModel, make_extractor
from jaxcl.evaluators.base import Batches, Extractor
from jaxcl.probe.inputs import find_step, restore
from jaxcl.views import EvalView

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Spaces:
    """A checkpoint's network, frozen, with one space for each of some layers; made by `open`.

    Attributes:
      config: of the run.
      networks: name of the layer ("h", "z:HEAD", ...) -> the network up to it.
      variables: {"params", "batch_stats"} of all of them.
      side: of the images that the network is given, in pixels.
      channels: of these images.
    """

    config: Config
    networks: Mapping[str, LayerModel]
    variables: PyTree
    side: int
    channels: int

    @classmethod
    def open(
        cls, workdir: str, step: str = "newest", more: Sequence[str] = (), trained: bool = True
    ) -> Spaces:
        """The spaces of h and of each head that reads h, of a checkpoint that is verified.

        Args:
          workdir: of the run.
          step: "newest", "best" or the number of a step.
          more: further layers, such as "heads:hidden"; see `Layer.parse`.
          trained: False for the network that the run started from.

        Raises:
          ProbeError: there is no such workdir.
          ValueError: there is no such layer.
          CheckpointError: no such checkpoint, or damage.
        """
        directory, number = find_step(workdir, step)
        config = config_lib.from_dict(checkpoint.read_manifest(directory, number).config)
        method = config.build_method()
        model = models.build(config.model, method.heads)
        own = tuple(name for name, _ in model.heads if name not in dict(model.inputs))
        whole = Layer(together=own).of(model)
        height, width, channels = method.views.output_shape(
            (config.data.image_size, config.data.image_size, config.data.channels)
        )
        sharding = mesh_lib.replicated(mesh_lib.make_mesh())

        def init() -> PyTree:
            key = jax.random.split(jax.random.key(config.seed), 4)[0]  # as in training
            return model.init(key, (height, width, channels))

        if trained:
            variables, _ = restore(directory, number, whole, jax.eval_shape(init), sharding)
        else:
            variables = jax.jit(lambda: whole.select(init()), out_shardings=sharding)()
        layers = (Layer(), *map(Layer, own), *(Layer.parse(text, own) for text in more))
        networks = {str(layer): layer.of(model) for layer in layers}
        side = config.evaluation.image_size or height
        return cls(config, networks, variables, side, channels)

    def features(self, batches: Batches) -> dict[str, Features]:
        """Layer -> features; the images go through the backbone once."""
        every = self._extract(self.variables, batches)
        shape = (self.side, self.side, self.channels)
        widths = [network.width(self.variables, shape) for network in self.networks.values()]
        parts = np.split(every.h, np.cumsum(widths)[:-1], axis=1)
        return {
            name: Features(part, every.labels, every.index)
            for name, part in zip(self.networks, parts, strict=True)
        }

    def batches(self, split: str) -> Batches:
        """This process's rows of one of the run's splits; images that cannot be read are left out and named in print."""
        source = data.load(self.config.data, split)
        skipped = data.Skipped(print)
        batches = data.eval_batches(
            source,
            self.config.evaluation.batch_size,
            self.config.data,
            EvalView(self.side),
            process_index=mesh_lib.process_index(),
            process_count=mesh_lib.process_count(),
        )
        for batch in batches:
            skipped.count(batch, source)
            yield batch

    @functools.cached_property
    def _extract(self) -> Extractor:
        def encode(variables: PyTree, images: jax.Array) -> jax.Array:
            found = [network.encode(variables, images) for network in self.networks.values()]
            return jnp.concatenate(found, axis=1)

        sharding = mesh_lib.batch_sharding(mesh_lib.make_mesh())
        return make_extractor(encode, EvalView(self.side), sharding)

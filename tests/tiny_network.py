"""A network of a few thousand multiplications in the place of a ResNet."""

import flax.linen as nn
import jax.numpy as jnp

from jaxcl.models import BackboneConfig, HeadSpec, Model
from jaxcl.models.heads import Head

CONFIG = BackboneConfig(width=1 / 32, stem="cifar")  # h has 16 features


class Tiny(nn.Module):
    momentum: float = 0.9
    dtype: object = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (3, 3), strides=(2, 2), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum, name="bn")(x)
        return nn.Dense(16, name="dense")(nn.relu(x).reshape(len(x), -1))


def build(backbone=CONFIG, heads=None):
    heads = {"projection": HeadSpec(layers=(12, 6))} if heads is None else heads
    modules = tuple((name, Head(spec)) for name, spec in heads.items())
    return Model(backbone, Tiny(backbone.bn_momentum), modules)

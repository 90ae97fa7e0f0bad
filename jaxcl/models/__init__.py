"""Networks: a backbone and heads, behind the function type `Apply` of jaxcl.methods."""

from jaxcl.models.base import BackboneConfig, Model, build
from jaxcl.models.heads import HeadOn, HeadSpec

__all__ = ["BackboneConfig", "HeadOn", "HeadSpec", "Model", "build"]

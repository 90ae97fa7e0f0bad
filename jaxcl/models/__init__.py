"""Networks: a backbone and heads, behind the function type `Apply` of jaxcl.methods."""

from jaxcl.models.base import BackboneConfig, Model, build
from jaxcl.models.heads import HeadSpec

__all__ = ["BackboneConfig", "HeadSpec", "Model", "build"]

"""Every op by the name that a config uses."""

from collections.abc import Mapping
from types import MappingProxyType

from jaxcl.views.color import Gray, Jitter, Solarize
from jaxcl.views.crop import Crop
from jaxcl.views.filters import Blur, Cutout, Noise, Sobel
from jaxcl.views.geometry import Flip, Rotate
from jaxcl.views.op import Op
from jaxcl.views.texture import Texture

OPS: Mapping[str, type[Op]] = MappingProxyType(
    {
        "crop": Crop,
        "flip": Flip,
        "rotate": Rotate,
        "jitter": Jitter,
        "gray": Gray,
        "solarize": Solarize,
        "blur": Blur,
        "sobel": Sobel,
        "cutout": Cutout,
        "noise": Noise,
        "texture": Texture,
    }
)

"""Views of images: augmentations with recorded parameters, composed into programs.

Every op works alone, un-jitted or under `jit` and `vmap`:

    from jaxcl import views
    blur = views.Blur(sigma=(0.1, 2.0))
    params = blur.sample(key, image.shape)
    blurred = blur.apply(image, params)
"""

from jaxcl.views import presets
from jaxcl.views.color import Gray, Jitter, Solarize
from jaxcl.views.compose import View, ViewProgram, Views, ViewsConfig, build_program
from jaxcl.views.crop import Crop
from jaxcl.views.evaluation import EvalView
from jaxcl.views.filters import Blur, Cutout, Noise, Sobel
from jaxcl.views.geometry import Flip, Rotate
from jaxcl.views.op import Op, as_float
from jaxcl.views.ops import OPS
from jaxcl.views.texture import Texture

__all__ = [
    "OPS",
    "Blur",
    "Crop",
    "Cutout",
    "EvalView",
    "Flip",
    "Gray",
    "Jitter",
    "Noise",
    "Op",
    "Rotate",
    "Sobel",
    "Solarize",
    "Texture",
    "View",
    "ViewProgram",
    "Views",
    "ViewsConfig",
    "as_float",
    "build_program",
    "presets",
]

"""LooC++ on ImageNet-100 (Xiao et al., ICLR 2021): the training of LooC, and all heads side by side as the feature.

    python -m jaxcl.main --config=configs/looc_pp_imagenet100.py[:FACTOR,...] --config.data.path=DIR
    python -m jaxcl.probe --workdir=runs/looc_pp_imagenet100_color_rotation --layer=heads:hidden --eval=sgd,rotation --recipe=looc
    python -m jaxcl.probe --workdir=runs/looc_pp_imagenet100_color_rotation --layer=heads --eval=sgd,rotation --recipe=looc

The training is that of `looc_imagenet100` under another name: where there is a workdir of that, the two probes of it are LooC++.
What the training itself reports, kNN on the way, is of the backbone's h.

`heads:hidden` are the hidden layers after ReLU, 2048 features of each head; `heads` the outputs, 128 of each. The sources differ on
which of them the paper takes. Arguments, data, transfer and what differs from the paper are those of `looc_imagenet100`.

From memory of the paper, neither checked nor measured here: 81.2 % top-1 with colour and rotation, where LooC has 79.2 %.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcl import config as config_lib


def get_config(arg: str = "color,rotation") -> ConfigDict:
    """The experiment; arg is that of `looc_imagenet100`."""
    if "moco" in arg.split(","):
        raise ValueError(
            f"looc_pp_imagenet100: {arg!r}: LooC++ is about LooC's heads; for MoCo name looc_imagenet100:{arg}"
        )
    c = config_lib.load(f"{Path(__file__).with_name('looc_imagenet100.py')}:{arg}")
    c.name = c.name.replace("looc", "looc_pp", 1)
    return c

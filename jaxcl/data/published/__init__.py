"""Data sets in the layouts in which they were published: list files and folders, nothing converted.

Each file describes one layout, with the headers of its lists and the numbers that were published with it;
`python -m jaxcl.data.verify --data=NAME:FOLDER` compares a copy with them.
"""

from jaxcl.data.published import (
    cars,
    cub,
    flowers,
    imagenet,
    inaturalist,
    inshop,
    modelnet40,
    sop,
)
from jaxcl.data.published.layout import Layout, Listing

LAYOUTS: dict[str, Layout] = {
    "cars": cars.LAYOUT,
    "cub": cub.LAYOUT,
    "flowers": flowers.LAYOUT,
    "imagenet": imagenet.LAYOUT,
    "inaturalist": inaturalist.LAYOUT,
    "inshop": inshop.LAYOUT,
    "modelnet40": modelnet40.LAYOUT,
    "sop": sop.LAYOUT,
}

__all__ = ["LAYOUTS", "Layout", "Listing"]

"""The map: embeddings on a plane as thumbnails, to move, search and look at."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcl.report.geometry import align, fill, lay_flat, layout, nearest
from jaxcl.report.images import Gallery
from jaxcl.report.page import Page
from jaxcl.report.sheets import GALLERY_SIDE, check_features, grade_legend
from jaxcl.report.text import escape, printable, script_json

_UNITS = 10_000  # coordinates are stored as integers: a ten-thousandth of the map is enough
_NEIGHBOURS = 8


@dataclasses.dataclass(frozen=True)
class Map:
    """A 2-D map of the gallery for one or more encoders; the reader moves between them.

    Attributes:
      gallery: images, labels and names.
      features: name of the encoder -> float[N, F]; the map begins with the first one, and the
        others are turned to lie like it.
      level: name of the level that colours the map at first; "" for the coarsest.
      seed: of t-SNE.
      title: of the section.
    """

    gallery: Gallery
    features: Mapping[str, np.ndarray]
    level: str = ""
    seed: int = 0
    title: str = "Map of the embeddings"

    def __post_init__(self) -> None:
        check_features("Map", self.features, len(self.gallery))
        if self.level and self.level not in self.gallery.levels:
            raise ValueError(
                f"Map: no label level {self.level!r}; there are {list(self.gallery.levels)}"
            )

    def body(self, page: Page) -> str:
        """The canvas with its controls; a script of the page fills it."""
        gallery = self.gallery
        if len(gallery) < 3 or not self.features:
            return ""
        page.needs_script = True
        name, sprite = page.sprite(gallery.images, GALLERY_SIDE)
        layouts: list[dict[str, Any]] = []
        reference = None
        for encoder, x in self.features.items():
            points, method = layout(x, self.seed)
            points = lay_flat(points) if reference is None else align(points, reference)
            reference = points if reference is None else reference
            units = np.rint(fill(points) * _UNITS).astype(int)
            layouts.append(
                {
                    "name": printable(encoder),
                    "method": method,
                    "xy": units.ravel().tolist(),
                    "near": nearest(x, _NEIGHBOURS).ravel().tolist(),
                }
            )
        data = {
            "sprite": name,
            "columns": sprite.columns,
            "rows": sprite.rows,
            "cell": sprite.cell,
            "units": _UNITS,
            "captions": [printable(gallery.caption(i)) for i in range(len(gallery))],
            "levels": [
                {
                    "name": printable(level),
                    "names": [printable(n) for n in gallery.names[column]],
                    "ids": gallery.ids[:, column].tolist(),
                }
                for column, level in enumerate(gallery.levels)
            ],
            "layouts": layouts,
        }
        encoders = "".join(
            f'<button type="button" data-layout="{i}" aria-pressed="{str(i == 0).lower()}">'
            f"{escape(encoder)}</button>"
            for i, encoder in enumerate(self.features)
        )
        options = "".join(
            f'<option value="{i}"{" selected" if level == self.level else ""}>'
            f"{escape(level)}</option>"
            for i, level in enumerate(gallery.levels)
        )
        colour = f"<label>colour <select>{options}</select></label>" if options else ""
        methods = " and ".join(dict.fromkeys(entry["method"] for entry in layouts))
        return f"""<p>Every image lies where its embedding is ({escape(methods)}; only what is near
means something, not the axes or the size of gaps). Good features put images of a kind together.
Point at an image to see its true nearest neighbours; click to keep it.</p>
<div class="map">
<div class="controls"><div class="choice" role="group" aria-label="Encoder">{encoders}</div>
{colour}<label>find <input type="search" placeholder="a label or a name"></label>
<span class="zoom"><button type="button" data-zoom="1.5" aria-label="Zoom in">+</button>
<button type="button" data-zoom="0.667" aria-label="Zoom out">−</button>
<button type="button" data-zoom="0">all</button></span></div>
<div class="stage"><canvas tabindex="0" aria-label="Map of the embeddings: drag to move, arrow keys
 and + and - work too">The map needs JavaScript.</canvas><div class="hint" hidden></div></div>
<aside><div class="chips"></div><div class="detail" aria-live="polite"></div></aside>
{grade_legend(gallery.levels)}
<script type="application/json">{script_json(data)}</script>
</div>"""

"""Sheets of images: the views that a method compares, and nearest neighbours."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxcl.report.geometry import nearest
from jaxcl.report.images import Gallery, Sprite, check_images
from jaxcl.report.page import Page, thumbnail
from jaxcl.report.text import escape, percent

GALLERY_SIDE = 64
"""Pixels of the longer side of a gallery's thumbnails, in the sheet and on the map."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Images and the views that were made of them.

    Attributes:
      originals: u8[N, h, w, C], C = 1 or 3.
      views: u8[N, V, h', w', C] or float[...] in [0, 1].
      captions: a text for each image; () for none.
      title: of the section.
    """

    originals: np.ndarray
    views: np.ndarray
    captions: Sequence[str] = ()
    title: str = "What the network sees"

    def __post_init__(self) -> None:
        if self.views.dtype != np.uint8:
            pixels = np.clip(np.asarray(self.views, np.float32), 0, 1) * 255
            object.__setattr__(self, "views", np.rint(pixels).astype(np.uint8))
        check_images("Pairs.originals", self.originals, 4)
        check_images("Pairs.views", self.views, 5)
        if len(self.originals) != len(self.views):
            raise ValueError(
                f"Pairs: {len(self.originals)} originals, but views of {len(self.views)} images"
            )

    def body(self, page: Page) -> str:
        """One group for each image: the original, then its views."""
        if not len(self.originals):
            return ""
        count, views = self.views.shape[:2]
        old, old_sprite = page.sprite(self.originals, 128)
        new, new_sprite = page.sprite(self.views.reshape(-1, *self.views.shape[2:]), 128)
        groups = []
        for i in range(count):
            caption = self.captions[i] if self.captions else f"image {i}"
            cells = [f"<div>{thumbnail(old, old_sprite, i, caption)}<small>original</small></div>"]
            for v in range(views):
                picture = thumbnail(new, new_sprite, i * views + v, f"{caption}, view {v + 1}")
                cells.append(f"<div>{picture}<small>view {v + 1}</small></div>")
            groups.append(f'<figure class="pair">{"".join(cells)}</figure>')
        return (
            f"<p>At every step each image is changed at random in {views} ways. The network learns "
            "that these views belong together, and that views of other images do not: what the "
            "changes take away, it learns to ignore. Can <em>you</em> still tell which image a "
            "view comes from? If not, they are too strong; if always at a glance, too weak.</p>"
            f'<div class="pairs">{"".join(groups)}</div>'
        )


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Query images and their nearest neighbours by centred cosine, for one or more encoders.

    Attributes:
      gallery: images, labels and names; every image's neighbours are sought among the others.
      features: name of the encoder -> float[N, F]; the first one is the most prominent.
      count: neighbours of a query.
      queries: indices of the images to show; None for a random choice that takes a turn at each
        label of the coarsest level.
      shown: so many queries are shown at once, the others behind a button.
      seed: of the random choice.
      title: of the section.
    """

    gallery: Gallery
    features: Mapping[str, np.ndarray]
    count: int = 8
    queries: Sequence[int] | None = None
    shown: int = 9
    seed: int = 0
    title: str = "Nearest neighbours"

    def __post_init__(self) -> None:
        check_features("Neighbours", self.features, len(self.gallery))

    def body(self, page: Page) -> str:
        """Shares of agreeing neighbours over all images, then the sheet."""
        gallery = self.gallery
        if len(gallery) < 2 or not self.features:
            return ""
        name, sprite = page.sprite(gallery.images, GALLERY_SIDE)
        found = {encoder: nearest(x, self.count) for encoder, x in self.features.items()}
        queries = pick_queries(gallery, 24, self.seed) if self.queries is None else self.queries
        blocks = [self._block(name, sprite, int(query), found) for query in queries]
        more = ""
        if blocks[self.shown :]:
            more = (
                f"<details><summary>{len(blocks) - self.shown} more queries</summary>"
                f"{''.join(blocks[self.shown :])}</details>"
            )
        chosen = "" if self.queries is not None else " The queries are drawn at random, not picked."
        return (
            f"<p>On the left an image, on the right the {next(iter(found.values())).shape[1]} "
            f"images (of {len(gallery):,}) whose embeddings are most like its own.{chosen}</p>"
            f"{self._shares(found)}{grade_legend(gallery.levels)}"
            f"{''.join(blocks[: self.shown])}{more}"
        )

    def _block(self, name: str, sprite: Sprite, query: int, found: Mapping[str, np.ndarray]) -> str:
        """One query, and a line of neighbours for each encoder."""
        gallery = self.gallery
        lines = []
        for encoder, index in found.items():
            cells = []
            for other in index[query].tolist():
                path, caption = gallery.path(other), gallery.caption(other)
                grade = int(gallery.agreement(np.array(query), np.array(other)))
                frame, mark = grade_mark(grade, len(gallery.levels))
                picture = thumbnail(name, sprite, other, " / ".join([*path, caption]), frame)
                text = escape(gallery.short(other))
                cells.append(f'<div data-mark="{mark}">{picture}<small>{text}</small></div>')
            lines.append(
                f'<div class="line"><b>{escape(encoder)}</b>'
                f'<div class="cells">{"".join(cells)}</div></div>'
            )
        caption, path = gallery.caption(query), gallery.path(query)
        return (
            f'<article class="query"><div class="asked">{thumbnail(name, sprite, query, caption)}'
            f"<p>{escape(caption)}<small>{escape(' / '.join(path))}</small></p></div>"
            f'<div class="lines">{"".join(lines)}</div></article>'
        )

    def _shares(self, found: Mapping[str, np.ndarray]) -> str:
        """For each level: how many of the neighbours agree with their query, and of all pairs."""
        gallery = self.gallery
        if not gallery.levels:
            return ""
        every = np.arange(len(gallery))
        agree = {e: gallery.agreement(every[:, None], index) for e, index in found.items()}
        total = len(gallery) * (len(gallery) - 1)
        lines = []
        for depth, level in enumerate(gallery.levels, start=1):
            _, sizes = np.unique(
                gallery.ids[(gallery.ids[:, :depth] >= 0).all(1), :depth],
                axis=0,
                return_counts=True,
            )
            chance = float((sizes * (sizes - 1)).sum() / total)
            bars = "".join(
                f'<div><span>{escape(e)}</span><i style="--share:{(a >= depth).mean():.4f}">'
                f"</i><b>{percent(float((a >= depth).mean()))}</b></div>"
                for e, a in agree.items()
            )
            bars += (
                f'<div class="chance"><span>by chance</span><i style="--share:{chance:.4f}">'
                f"</i><b>{percent(chance)}</b></div>"
            )
            lines.append(
                f"<figure><figcaption>same {escape(level)}, in %</figcaption>{bars}</figure>"
            )
        return (
            f"<h3>How many of the neighbours agree, over all {len(gallery):,} images</h3>"
            f'<div class="shares">{"".join(lines)}</div>'
        )


def check_features(name: str, features: Mapping[str, np.ndarray], count: int) -> None:
    """Raises a ValueError unless each array is finite, float[count, F]."""
    for encoder, x in features.items():
        if x.ndim != 2 or len(x) != count:
            raise ValueError(
                f"{name}: features {encoder!r} must be [{count}, F], a row for each image of the "
                f"gallery; got {list(x.shape)}"
            )
        if not np.isfinite(x).all():
            raise ValueError(f"{name}: features {encoder!r} have values that are not finite")


def pick_queries(gallery: Gallery, count: int, seed: int) -> list[int]:
    """Chooses `count` images at random, in turn from each label of the coarsest level."""
    order = np.random.default_rng(seed).permutation(len(gallery))
    coarse = gallery.ids[:, 0] if gallery.levels else np.zeros(len(gallery), np.int32)
    turns = np.empty(len(gallery), np.int64)
    seen: dict[int, int] = {}
    for i in order:
        label = int(coarse[i])
        turns[i] = seen[label] = seen.get(label, -1) + 1
    return [int(i) for i in order[np.lexsort((coarse[order], turns[order]))][:count]]


def grade_mark(grade: int, levels: int) -> tuple[str, str]:
    """Returns (CSS class, mark) for `grade` agreeing levels of `levels`; colour is not alone.

    "none" and "all" mean what they say; with three levels or more, "most" is all but the finest.
    """
    if not levels:
        return "", ""
    if grade in (0, levels):
        return ("none", "✗") if grade == 0 else ("all", "✓" if levels < 3 else "★")
    return ("most", "✓") if grade == levels - 1 and levels > 2 else ("some", "~")


def grade_legend(levels: Sequence[str]) -> str:
    """Returns the HTML legend of the frames; "" where there are no labels."""
    texts: dict[tuple[str, str], str] = {}
    for grade in range(len(levels), -1, -1):
        if grade == len(levels):
            text = f"same {levels[-1]}" if levels else ""
        else:
            text = f"same {levels[grade - 1]}" if grade else f"another {levels[0]}"
        texts[grade_mark(grade, len(levels))] = text  # of several grades the coarsest remains
    if not levels:
        return ""
    items = "".join(
        f'<li><i class="thumb {kind}"></i>{mark} {escape(text)}</li>'
        for (kind, mark), text in texts.items()
    )
    return f'<ul class="legend">{items}</ul>'

"""The page: its frame, its header, and the places where sections put pictures and data."""

import base64
import dataclasses
import datetime
import hashlib
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

import jaxcl
from jaxcl.report.images import Sprite, make_sprite
from jaxcl.report.text import anchor, escape, printable


class Page:
    """What sections share while a page is made: sprites, each stored once.

    Attributes:
      styles: CSS rules that sections have added.
      needs_script: whether a section is interactive.
    """

    def __init__(self) -> None:
        self.styles: list[str] = []
        self.needs_script = False
        self._sprites: dict[tuple[int, int], tuple[str, Sprite, np.ndarray]] = {}

    def sprite(self, images: np.ndarray, side: int) -> tuple[str, Sprite]:
        """Returns (CSS class, sprite) of images u8[N, h, w, C] at no more than `side` pixels.

        The same array, asked for again with the same side, is stored once.
        """
        key = (id(images), side)
        if key not in self._sprites:
            name, sprite = f"s{len(self._sprites)}", make_sprite(images, side)
            height, width = sprite.cell
            smooth = "auto" if max(height, width) > 48 else "pixelated"
            self.styles.append(
                f".{name}{{background-image:url({sprite.uri});"
                f"background-size:{100 * sprite.columns}% {100 * sprite.rows}%;"
                f"aspect-ratio:{width}/{height};image-rendering:{smooth}}}"
            )
            # The array is kept so that its id stays its own.
            self._sprites[key] = (name, sprite, images)
        name, sprite, _ = self._sprites[key]
        return name, sprite


def thumbnail(name: str, sprite: Sprite, index: int, label: str, extra: str = "") -> str:
    """Returns the HTML of one image of a sprite; `label` (plain text) is its title."""
    text = escape(label)
    return (
        f'<span class="thumb {name} {extra}" role="img" aria-label="{text}" title="{text}" '
        f'style="background-position:{sprite.position(index)}"></span>'
    )


class Section(Protocol):
    """A part of the page with a heading of its own."""

    @property
    def title(self) -> str:
        """Plain text."""

    def body(self, page: Page) -> str:
        """Returns the HTML below the heading; "" leaves the section out."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What stands in a report.

    Attributes:
      title: plain text, as are all texts here.
      summary: one or two sentences: what was done.
      facts: name -> value, for the header: data, network, devices, seed, time, ...
      warnings: what looks wrong, for example from `metrics.diagnose`.
      sections: in order.
      next_steps: (what it does, command line).
      config: the settings, possibly nested.
    """

    title: str
    summary: str = ""
    facts: Mapping[str, object] = dataclasses.field(default_factory=dict)
    warnings: Sequence[str] = ()
    sections: Sequence[Section] = ()
    next_steps: Sequence[tuple[str, str]] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write_report(path: epath.PathLike, report: Report) -> None:
    """Writes a report as one HTML file; a file that was there is replaced at the end."""
    path = epath.Path(path)
    new = path.with_name(path.name + ".new")
    new.write_bytes(render(report).encode("utf-8"))
    new.replace(path)


def render(report: Report) -> str:
    """Returns a report as the text of one HTML document that loads nothing from anywhere."""
    page = Page()
    bodies = [(section.title, section.body(page)) for section in report.sections]
    bodies = [(title, body) for title, body in bodies if body]
    if report.next_steps:
        bodies.append(("What to do next", _next_steps(report.next_steps)))
    if report.config:
        bodies.append(("Settings", _config(report.config)))
    files = importlib.resources.files("jaxcl.report")
    style = (files / "page.css").read_text() + "\n".join(page.styles)
    script = (files / "map.js").read_text() if page.needs_script else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Nothing may be fetched, and no script may run but the one whose digest stands here.
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<a href="#{anchor(title)}">{escape(title)}</a>' for title, _ in bodies)
    sections = "\n".join(
        f'<section id="{anchor(title)}"><h2>{escape(title)}</h2>\n{body}\n</section>'
        for title, body in bodies
    )
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(report.title)}</title>
<style>
{style}
</style>
</head>
<body>
<header>
<h1>{escape(report.title)}</h1>
{_paragraph(report.summary, "summary")}
{_facts(report.facts)}
{_warnings(report.warnings)}
</header>
<nav aria-label="Sections">{links}</nav>
<main>
{sections}
</main>
<footer>Written by jaxcl {escape(jaxcl.__version__)} on {escape(now)}. This file is
self-contained: it loads nothing from the network.</footer>
{f"<script>{script}</script>" if script else ""}
</body>
</html>
"""


def _paragraph(text: str, name: str) -> str:
    return f'<p class="{name}">{escape(text)}</p>' if text else ""


def _facts(facts: Mapping[str, object]) -> str:
    if not facts:
        return ""
    items = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items()
    )
    return f'<dl class="facts">{items}</dl>'


def _warnings(warnings: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return (
        f'<div class="warnings" role="note"><h2>Look at this first</h2><ul>{items}</ul></div>'
        if items
        else ""
    )


def _next_steps(steps: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f"<li>{escape(what)}<pre><code>{escape(command)}</code></pre></li>"
        for what, command in steps
    )
    return f'<ol class="steps">{items}</ol>'


def _config(config: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(key)}</th><td>{escape(value)}</td></tr>"
        for key, value in flatten(config)
    )
    return (
        "<details><summary>All settings of the run</summary>"
        f'<table class="config"><tbody>{rows}</tbody></table></details>'
    )


def flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Returns the leaves of a nested mapping as ("a.b.c", text)."""
    rows = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{name}.")
        else:
            rows.append((name, value if isinstance(value, str) else printable(repr(value))))
    return rows

"""Text into HTML and data into scripts, safely: labels and file names come from anywhere."""

import html
import json
import math
import unicodedata
from typing import Any


def printable(value: object) -> str:
    """Returns str(value) with what cannot be shown, or would reorder the text, as an escape.

    Control and format characters (among them those that change the writing direction) and lone
    surrogates, as in file names that are not UTF-8, become "\\x1b", "\\u202e", "\\udcff". Joiners
    and variation selectors, parts of emoji, stay.
    """
    return "".join(_shown(c) for c in str(value))


def _shown(char: str) -> str:
    if char in "\n\t\u200d" or unicodedata.category(char) not in ("Cc", "Cf", "Cs"):
        return char
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def escape(value: object) -> str:
    """Returns `value` as HTML text, also good inside a quoted attribute."""
    return html.escape(printable(value), quote=True)


def script_json(data: Any) -> str:
    """Returns `data` as JSON that can stand in a <script> element: it has no <, > or &.

    Strings should have gone through `printable`, as the script shows them as they are.
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def percent(value: float) -> str:
    """Returns a fraction as percent with one decimal, an en dash where it is not finite."""
    return f"{100 * value:.1f}" if math.isfinite(value) else "–"


def anchor(title: str) -> str:
    """Returns an element id for a title: ASCII letters, digits and hyphens."""
    return "-".join(
        "".join(c if c.isascii() and c.isalnum() else " " for c in title).split()
    ).lower()

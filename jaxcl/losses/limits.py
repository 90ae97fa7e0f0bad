"""Which numbers the settings of the losses of metric learning can be: one table, for the functions and for the method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax

ABOVE = "a number above 0"
FROM = "a number from 0 on"

LIMITS: Mapping[str, Mapping[str, str]] = {
    "margin_contrastive": {"pos_margin": FROM, "neg_margin": FROM, "epsilon": FROM},
    "hadsell": {"margin": ABOVE, "epsilon": FROM},
    "triplet": {"margin": FROM},
    "margin_loss": {"margin": FROM, "nu": FROM},
    "nt_logistic": {"temperature": ABOVE},
    "nt_xent_pairs": {"temperature": ABOVE},
    "multi_similarity": {"alpha": ABOVE, "beta": ABOVE, "epsilon": FROM},
    "circle": {"scale": ABOVE},
    "nca": {"scale": ABOVE},
    "fast_ap": {"bins": ABOVE},
    "n_pairs": {"l2": FROM},
    "proxy_nca": {"scale": ABOVE},
    "proxy_anchor": {"alpha": ABOVE, "margin": FROM},
    "arcface": {"scale": ABOVE, "margin": FROM},
}
"""Function -> setting -> what is expected.

What is not here may be any number: margins of "lifted_structure" (their difference counts alone), that of "circle" (the paper
tries some below 0), the border of "margin_loss", and the cosine `base` of "multi_similarity".
"""

OF_DISTANCES = ("margin_contrastive", "hadsell")
"""Functions whose margins are distances themselves, which "dot", minus a product, has below 0."""


def misfit(function: str, name: str, value: Any, distance: str = "l2") -> str:
    """What was expected of a setting, or "" if the value is that; a traced one is not looked at.

    Args:
        function: of `jaxcl.losses`.
        name: of the setting.
        value: a number.
        distance: name of the distance that the function goes by.
    """
    expected = LIMITS.get(function, {}).get(name, "")
    if function in OF_DISTANCES and distance == "dot" and name != "epsilon":
        expected = ""
    if not expected or isinstance(value, jax.core.Tracer):
        return ""
    number = float(value)
    fits = number > 0 if expected == ABOVE else number >= 0
    return "" if fits and math.isfinite(number) else expected


def check_numbers(function: str, distance: str = "l2", **values: Any) -> None:
    """Refuses settings that are not in `LIMITS`.

    Raises:
        ValueError: names `function`, the setting and what was expected.
    """
    for name, value in values.items():
        expected = misfit(function, name, value, distance)
        if expected:
            raise ValueError(f"{function}: {name} must be {expected}, got {value}.")

"""Taxonomies from files: what is above each name.

Three kinds of files are read:

* `.json`: an object, name -> list of its ancestors, coarse to fine: {"tabby": ["animal", "cat"], ...}.
* `.csv`: a header with the names of the levels, coarse to fine, and a row for each name: its ancestors,
  then the name itself. A row may end early (empty cells at its end).
* any other: lines of two words that say "is a", as in ImageNet's `wordnet.is_a.txt` ("parent child",
  75,850 lines). The column with fewer names that are only there has the parents, so the other order is
  read as well. `depths` says at which distance from the root the ancestors are taken.

Paths may differ in length; what a short one lacks is a missing label (-1).
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcl.data.table import read_columns

Path_ = tuple[str, ...]
"""The names on the way to a name, coarse to fine, and that name."""


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """The path of each name.

    Attributes:
      paths: name -> its path, which ends with it.
      names: of the levels, if the file has them; else they are named by `depth` and number.
      numbers: of the levels above the last one, for their names.
    """

    paths: Mapping[str, Path_]
    names: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()

    @property
    def depth(self) -> int:
        """The number of levels."""
        return max(map(len, self.paths.values()))

    def path(self, name: str) -> Path_ | None:
        """The path of a name, None if it has none."""
        return self.paths.get(name)

    def levels(self, last: str) -> tuple[str, ...]:
        """Names of the levels; the last one is called as in the data if the file has no names."""
        if self.names:
            return self.names
        return (*depth_names(self.numbers or range(self.depth - 1)), last)


def depth_names(depths: Iterable[int]) -> tuple[str, ...]:
    """What levels without a name are called."""
    return tuple(f"depth{depth}" for depth in depths)


def read(path: str | os.PathLike[str], depths: Sequence[int] = ()) -> Taxonomy:
    """Reads a taxonomy.

    Args:
      path: of the file; its ending says of which kind it is.
      depths: of a list of is-a lines, the distances from the root (which is 0) at which ancestors are
        taken, ascending. A name that is not so deep stands for itself there.

    Raises:
      ValueError: the file cannot be read or is malformed (naming the line or the name), or depths are given
        for a file that does not need them, or not for one that does.
    """
    place = Path(path)
    kind = place.suffix.lower()
    if kind in (".json", ".csv"):
        if depths:
            raise ValueError(
                f"data.taxonomy_depth={tuple(depths)} is for lists of is-a lines; {str(path)!r} says itself "
                "which levels there are"
            )
        return _json(place) if kind == ".json" else _csv(place)
    return _is_a(place, depths)


def _json(path: Path) -> Taxonomy:
    try:
        plain: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"the taxonomy {str(path)!r} cannot be read: {error}") from error
    if not isinstance(plain, dict) or not plain:
        raise ValueError(f"the taxonomy {str(path)!r} must be an object, name -> list of ancestors")
    for name, ancestors in plain.items():
        named = isinstance(ancestors, list) and all(isinstance(a, str) and a for a in ancestors)
        if not name or not named:
            raise ValueError(
                f"the taxonomy {str(path)!r} gives {name!r} the ancestors {ancestors!r}: expected a list of "
                "names"
            )
    return Taxonomy({name: (*ancestors, name) for name, ancestors in plain.items()})


def _csv(path: Path) -> Taxonomy:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"the taxonomy {str(path)!r} cannot be read: {error}") from error
    _, rows = read_columns(path, header)
    paths: dict[str, Path_] = {}
    for line, cells in rows:
        names = [cell.strip() for cell in cells]
        while names and not names[-1]:
            names.pop()
        if not names or "" in names:
            raise ValueError(
                f"line {line} of {str(path)!r} has a name below an empty cell: {cells}; only cells at the end "
                "of a row may be empty"
            )
        if paths.setdefault(names[-1], tuple(names)) != tuple(names):
            raise ValueError(
                f"line {line} of {str(path)!r} gives {names[-1]!r} a second path: {'/'.join(names)}, after "
                f"{'/'.join(paths[names[-1]])}"
            )
    if not paths:
        raise ValueError(f"the taxonomy {str(path)!r} lists no names")
    return Taxonomy(paths, tuple(header))


def _is_a(path: Path, depths: Sequence[int]) -> Taxonomy:
    if not depths or list(depths) != sorted(set(depths)) or min(depths) < 1:
        raise ValueError(
            f"data.taxonomy_depth={tuple(depths)}: expected the distances from the root at which "
            f"ancestors in {str(path)!r} are taken, ascending, as in (4,) or (3, 6)"
        )
    pairs = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the taxonomy {str(path)!r} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and (len(words) != 2 or words[0] == words[1]):
            raise ValueError(
                f"line {number} of {str(path)!r} is {line!r}: expected two names, a parent and a child"
            )
        pairs += [words] if words else []
    if not pairs:
        raise ValueError(f"the taxonomy {str(path)!r} lists no names")
    left, right = {a for a, _ in pairs}, {b for _, b in pairs}
    turned = len(left - right) > len(right - left)
    parents: dict[str, list[str]] = {name: [] for name in left | right}
    for a, b in pairs:
        child, parent = (a, b) if turned else (b, a)
        parents[child].append(parent)
    chains = _shortest(parents, path)
    paths = {
        name: (*(chain[depth] if depth < len(chain) else name for depth in depths), name)
        for name, chain in chains.items()
    }
    return Taxonomy(paths, numbers=tuple(depths))


def _shortest(parents: Mapping[str, Sequence[str]], path: Path) -> dict[str, Path_]:
    """For each name the shortest way from a root to it, the first one by name where there are several."""
    children: dict[str, list[str]] = {name: [] for name in parents}
    for name, above in parents.items():
        for parent in above:
            children[parent].append(name)
    chains: dict[str, Path_] = {name: (name,) for name, above in parents.items() if not above}
    reached = sorted(chains)
    while reached:
        nearer: dict[str, Path_] = {}
        for parent in reached:
            for child in children[parent]:
                if child not in chains:
                    way = (*chains[parent], child)
                    nearer[child] = min(nearer.get(child, way), way)
        chains |= nearer
        reached = sorted(nearer)
    if lost := sorted(set(parents) - set(chains)):
        raise ValueError(
            f"the taxonomy {str(path)!r} goes round in a circle: {', '.join(lost[:5])} have no way to a root"
        )
    return chains

"""The settings of evaluation."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What is measured on frozen features.

    Attributes:
      every: steps between online kNN evaluations; 0 for none.
      gallery: split whose labelled images are the neighbours (online, and for choosing settings).
      validation: split on which the online kNN is scored and settings (k, centring, l2) are chosen.
      test: split of the table at the end; "" for no table.
      test_gallery: split whose labelled images serve the test queries; "" for the same as gallery.
      levels: which label levels, by name; () for all whose classes the gallery and the validation
        images have in common.
      ks: numbers of neighbours to choose from.
      temperature: of the weighted vote exp(s / T) of kNN.
      batch_size: images at once when features are extracted.
      linear: also a linear probe (L-BFGS) in the table at the end.
      baselines: also raw pixels and the untrained encoder in the table at the end.
    """

    every: int = 0
    gallery: str = ""
    validation: str = ""
    test: str = ""
    test_gallery: str = ""
    levels: tuple[str, ...] = ()
    ks: tuple[int, ...] = (1, 3, 5, 10, 20, 50, 200)
    temperature: float = 0.1
    batch_size: int = 256
    linear: bool = True
    baselines: bool = True

    def __post_init__(self) -> None:
        if self.every and not (self.gallery and self.validation):
            raise ValueError(
                f"every={self.every} asks for an online kNN: name its splits in gallery and "
                "validation, or set every=0"
            )
        if self.test and not (self.gallery and self.validation):
            raise ValueError(
                f"test={self.test!r} asks for a table: name the splits gallery and validation too "
                "(settings are chosen there)"
            )
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks={self.ks}: expected numbers of neighbours of 1 or more")
        if self.temperature <= 0 or self.batch_size < 1:
            raise ValueError(
                f"temperature={self.temperature}, batch_size={self.batch_size}: "
                "expected numbers above 0"
            )

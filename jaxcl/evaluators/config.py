"""The settings of evaluation."""

from __future__ import annotations

import dataclasses

from jaxcl.evaluators.extra import EXTRA, check_names
from jaxcl.evaluators.retrieval import KS
from jaxcl.evaluators.rotation import Factor


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
      image_size: side in pixels of the images that the encoder is given; 0 is that of the
        training's views. Above 32 it is the central 87.5 % of an image; see `EvalView`.
      batch_size: images at once when features are extracted, of all processes together; many devices
        are kept busy by more.
      linear: also a linear probe (L-BFGS) in the table at the end.
      baselines: also raw pixels and the untrained encoder in the table at the end. Pixels are those of
        whole images, or, where these would take more than 1 GiB as features, of images reduced to a side
        of 32, which is said.
      extra: other evaluators for the table at the end, some of `EXTRA`.
      extra_levels: label levels of retrieval, clustering, hierarchy and few-shot; () for all at which
        test images can be compared, whether or not training has seen their classes.
      factors: what the evaluator "factor" predicts, "OP.PARAMETER" ("jitter.hue"), "OP.PARAMETER[0,1]" of an
        array, "run:OP.PARAMETER" of the run's own op; see `factor_of`.
      retrieval_gallery: split that is searched by retrieval; "" for the test images themselves, each
        without the query.
      retrieval_ks: the k of recall@k, in retrieval and for tables of pairs.
      unseen: split of classes that training has not seen, for a second set of rows, whose methods
        begin with "unseen/"; "" for none.
      unseen_gallery: split with labelled images of the same classes to learn them from; "" for no
        classification of unseen classes.
    """

    every: int = 0
    gallery: str = ""
    validation: str = ""
    test: str = ""
    test_gallery: str = ""
    levels: tuple[str, ...] = ()
    ks: tuple[int, ...] = (1, 3, 5, 10, 20, 50, 200)
    temperature: float = 0.1
    image_size: int = 0
    batch_size: int = 256
    linear: bool = True
    baselines: bool = True
    extra: tuple[str, ...] = ()
    extra_levels: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    retrieval_gallery: str = ""
    retrieval_ks: tuple[int, ...] = KS
    unseen: str = ""
    unseen_gallery: str = ""

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
        if not self.retrieval_ks or min(self.retrieval_ks) < 1:
            raise ValueError(f"retrieval_ks={self.retrieval_ks}: expected numbers of 1 or more")
        if self.image_size < 0:
            raise ValueError(f"image_size={self.image_size}: expected 0 (as the views) or above")
        if self.temperature <= 0 or self.batch_size < 1:
            raise ValueError(
                f"temperature={self.temperature}, batch_size={self.batch_size}: "
                "expected numbers above 0"
            )
        check_names(self.extra, EXTRA, "extra")
        check_factors(self.factors)
        if ("factor" in self.extra) != bool(self.factors):
            raise ValueError(
                f"extra={self.extra}, factors={self.factors}: name factors, and 'factor' in extra, or "
                "neither"
            )
        if self.unseen and not self.test:
            raise ValueError(
                f"unseen={self.unseen!r}: its rows stand in the table of test; name test"
            )
        if self.unseen_gallery and not self.unseen:
            raise ValueError(f"unseen_gallery={self.unseen_gallery!r}: name unseen too")


def check_factors(factors: tuple[str, ...]) -> None:
    """Checks the form of "[run:]OP.PARAMETER[i,j]", before there are devices.

    Raises:
      ValueError: another form, or an unknown op, with the nearest name.
    """
    for factor in factors:
        Factor.parse(factor)

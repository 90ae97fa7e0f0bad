"""What is probed, on which data, and how: the settings, and the flags of the command."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from jaxcl.data.config import PUBLISHED
from jaxcl.evaluators import EXTRA, check_factors, check_names
from jaxcl.probe.recipes import LINEAR

EVALUATIONS = ("knn", "linear", "sgd", "finetune", "classifier", *EXTRA)
TUNING = ("v1", "v2", "transfer")
"""Recipes of fine-tuning; those of linear probes are `LINEAR`."""
ENCODERS = ("trained", "key")


class ProbeError(ValueError):
    """A probe that cannot be made; the text says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is probed, on which data, and how.

    Attributes:
      workdir: of the run.
      step: "newest", "best" (by online kNN), or the number of a step.
      evaluations: some of `EVALUATIONS`. "classifier" is the classifier that the run has trained itself, its head or its joint
        probe; the others learn or compare anew.
      encoder: "trained", or "key", the slow copy that MoCo and its like keep.
      layer: "h", "z", "z:HEAD", "head:K", "head:HEAD:K", "heads" or "heads:hidden"; see `Layer.parse`.
      labels: shares of the labels for linear, sgd and finetune; 1 is all.
      levels: names of the label levels; () for the run's, or all that training and test images
        share.
      data: "" for the run's data, or "KIND", "KIND:PATH", "tfds:NAME" or "tfds:NAME@DIR".
      settings: "section.key=value" changes of the run's config, for example "data.image_size=64".
      gallery: split that retrieval searches; "" for the run's, or the test images themselves, each
        without the query.
      retrieval_ks: the k of recall@k, in retrieval and for tables of pairs; () for the run's.
      unseen: split of classes that training has not seen, scored besides; "" for the run's, if any.
      unseen_train: split to learn these classes from; "" for the run's, if any.
      factors: what the evaluation "factor" predicts, "[run:]OP.PARAMETER[i,j]"; see `evaluators.factor_of`.
      train: split to learn from; "" for the run's, or "train" with other data.
      validation: split on which settings are chosen; "" for the run's, or a tenth of `train`.
      test: split to score; "" for the run's, or "test" with other data.
      size: side of the images that the network is given; 0 for that of the run.
      baselines: also score raw pixels and the untrained encoder; see `pixel_view` for many large images.
      paper_grid: choose l2 among SimCLR's 45 values, not 9.
      recipe: of sgd, one of `LINEAR`: "v1" (SimCLR), "moco", "moco_v3", "supcon" (on CIFAR), "supcon_imagenet", "looc" or
        "himulcone"; of finetune one of `TUNING`: "v1" (Nesterov), "v2" (LARS) or "transfer", SimCLR's for other data (Nesterov,
        learning rate and weight decay chosen on the validation images from a grid).
      epochs: of sgd and finetune; 0 for the recipe's: for SimCLR 90, and 60 (up to 2 % of the labels) or 30, and
        20,000 steps with the recipe "transfer", for each pair of its grid. Where a rate falls in steps, these move along.
      lr: base learning rate of sgd and finetune, for 256 images; 0: the recipe's. The control from scratch has its own.
      batch_size: of sgd and finetune; 0 for the recipe's, mostly 256.
      scratch: factor of the epochs of the same network trained from scratch; 0 for no such control.
      seed: of label subsets, order and views.
      out: where the results go; "" is probe.json in the workdir.
    """

    workdir: str
    step: str = "newest"
    encoder: str = "trained"
    evaluations: tuple[str, ...] = ("knn", "linear")
    layer: str = "h"
    labels: tuple[float, ...] = (1.0,)
    levels: tuple[str, ...] = ()
    data: str = ""
    settings: tuple[str, ...] = ()
    train: str = ""
    validation: str = ""
    test: str = ""
    gallery: str = ""
    retrieval_ks: tuple[int, ...] = ()
    unseen: str = ""
    unseen_train: str = ""
    factors: tuple[str, ...] = ()
    size: int = 0
    baselines: bool = True
    paper_grid: bool = False
    recipe: str = "v1"
    epochs: float = 0.0
    lr: float = 0.0
    batch_size: int = 0
    scratch: float = 2.0
    seed: int = 0
    out: str = ""

    def __post_init__(self) -> None:
        if not self.evaluations:
            raise ProbeError(f"--eval=: expected some of {', '.join(EVALUATIONS)}")
        try:
            check_names(self.evaluations, EVALUATIONS, "--eval")
            check_factors(self.factors)
        except ValueError as error:
            raise ProbeError(str(error)) from error
        if ("factor" in self.evaluations) != bool(self.factors):
            raise ProbeError("--eval=factor and --factors go together, as in --factors=jitter.hue")
        if not self.labels or not all(0 < share <= 1 for share in self.labels):
            raise ProbeError(f"--labels={self.labels}: expected shares in (0, 1], as in 0.01,0.1,1")
        if self.retrieval_ks and min(self.retrieval_ks) < 1:
            raise ProbeError(f"--retrieval_ks={self.retrieval_ks}: expected numbers of 1 or more")
        if self.step not in ("newest", "best") and not self.step.isdecimal():
            raise ProbeError(f"--step={self.step}: expected newest, best or the number of a step")
        if self.encoder not in ENCODERS:
            raise ProbeError(f"--encoder={self.encoder}: expected one of {', '.join(ENCODERS)}")
        if self.recipe not in (*TUNING, *LINEAR):
            known = ", ".join(dict.fromkeys((*TUNING, *LINEAR)))
            raise ProbeError(f"--recipe={self.recipe}: expected one of {known}")
        if "finetune" in self.evaluations and self.recipe not in TUNING:
            raise ProbeError(
                f"--recipe={self.recipe} is for --eval=sgd; fine-tuning has {', '.join(TUNING)}: ask for one after the other"
            )
        if "classifier" in self.evaluations and (self.data or self.encoder == "key"):
            raise ProbeError(
                "--eval=classifier: the run's classifier stands on its trained encoder and knows the classes of its data; leave"
                " out --data and --encoder"
            )
        if min(self.epochs, self.lr, self.scratch, self.size, self.batch_size) < 0:
            raise ProbeError(
                "--epochs, --lr, --scratch, --size and --batch_size: expected 0 or more"
            )


def parse(argv: Sequence[str]) -> Options:
    """Command-line arguments -> Options."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcl.probe",
        description="Scores the encoder of a checkpoint.",
        allow_abbrev=False,
    )
    default = Options("")

    def flag(name: str, text: str, field: str = "", **extra: Any) -> None:
        value = getattr(default, field or name)
        kind = {"type": type(value)} if isinstance(value, int | float) else {}
        shown = (
            f" (default: {value})" if value not in ("", ()) and not isinstance(value, tuple) else ""
        )
        parser.add_argument(
            f"--{name}", dest=field or name, default=value, help=text + shown, **{**kind, **extra}
        )

    def names(text: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())

    def factors(text: str) -> tuple[str, ...]:
        # The commas within brackets separate the numbers of a component.
        return tuple(part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip())

    def shares(text: str) -> tuple[float, ...]:
        return tuple(float(part) for part in names(text))

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in names(text))

    def switch(name: str, text: str) -> None:
        value = getattr(default, name)
        parser.add_argument(
            f"--{name}", action=argparse.BooleanOptionalAction, default=value, help=text
        )

    parser.add_argument("--workdir", required=True, help="The run's directory or bucket.")
    flag("step", "newest, best (by online kNN), or the number of a step")
    flag("encoder", "trained, or key: the slow copy that MoCo and its like keep")
    flag(
        "eval",
        f"some of {','.join(EVALUATIONS)} (default: knn,linear)",
        "evaluations",
        type=names,
    )
    flag(
        "layer",
        "h; z or z:HEAD; head:K or head:HEAD:K, the K-th layer of a head; heads or heads:hidden, the "
        "outputs or last hidden layers of all heads side by side",
    )
    flag("labels", "shares of the labels, as in 0.01,0.1,1 (default: 1)", type=shares)
    flag("levels", "label levels, by name (default: all that can be scored)", type=names)
    flag(
        "data",
        f"other data: emoji, folder:PATH, table:FILE, idx:DIR, fashion_mnist:DIR, tfds:NAME[@DIR], "
        f"records:DIR, arrays:FILE, or a copy as published: {', '.join(f'{name}:DIR' for name in PUBLISHED)}",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change a setting of the run's config, as in data.labels=path or mesh.platform=cpu; "
        "may be repeated",
    )
    flag("train", "split to learn from (default: the run's gallery; 'train' with --data)")
    flag(
        "validation", "split on which settings are chosen (default: the run's, or a tenth of train)"
    )
    flag("test", "split to score (default: the run's; 'test' with --data)")
    flag("gallery", "split that retrieval searches (default: the test images themselves)")
    flag("retrieval_ks", "the k of recall@k, as in 1,10,100 (default: the run's)", type=numbers)
    flag("unseen", "split of unseen classes, scored besides (default: the run's)")
    flag("unseen_train", "split to learn the unseen classes from (default: the run's)")
    flag(
        "factors",
        "what --eval=factor predicts, as in jitter.hue,flip.on,texture.gains[0,1]; run:rotate.angle is asked of the run's "
        "own op, with its settings",
        type=factors,
    )
    flag("size", "side of the images that the network is given; 0: as in the run")
    switch("baselines", "also score raw pixels and the untrained encoder")
    switch("paper_grid", "choose l2 among SimCLR's 45 values instead of 9")
    flag(
        "recipe",
        "of sgd: v1 (SimCLR), moco, moco_v3, supcon (on CIFAR), supcon_imagenet, looc or himulcone, each with its own optimizer, "
        "schedule, epochs and augmentation; of finetune: v1 (Nesterov), v2 (LARS, usually with --layer=head:1), or transfer: 7 "
        "learning rates x 8 weight decays, the best on the validation images",
    )
    flag(
        "epochs",
        "of sgd and finetune; 0: the recipe's, for SimCLR 90, and 60 (up to 2 %% of the labels) or 30; 20,000 steps for "
        "each pair of --recipe=transfer. Where a rate falls in steps, these move along",
    )
    flag(
        "lr",
        "base learning rate of sgd and finetune, per 256 images, and the only one of --recipe=transfer; 0: the recipe's, for "
        "SimCLR 0.1 and 0.05",
    )
    flag("batch_size", "of sgd and finetune; 0: the recipe's, mostly 256")
    flag("scratch", "epochs of the control from scratch, as a multiple; 0: no control")
    flag("seed", "of label subsets, order and views")
    flag("out", "file for the results (default: probe.json in the workdir)")
    given = vars(parser.parse_args(list(argv)))
    return Options(**{**given, "settings": tuple(given["settings"])})

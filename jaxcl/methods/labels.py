"""What a method knows of the labels of its training data."""

import dataclasses

import jax

IMAGE = "image"
"""The level of methods that can do without labels: every image is a class of its own."""


@dataclasses.dataclass(frozen=True)
class LabelLevels:
    """The label levels of the training data, coarse to fine.

    A run fills it in from its data (`Config.for_labels`), and a checkpoint's config keeps it. In a batch, two images agree at a
    level when their labels there are equal (`jaxcl.data.by_path`) and not -1, which is missing.

    Attributes:
      names: of the levels; empty as long as the data are not known.
      classes: number of classes of each level.
    """

    names: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) != len(self.classes):
            raise ValueError(
                f"labels: expected as many names as numbers of classes, got {self.names} and {self.classes}"
            )

    def column(self, level: str) -> int:
        """The column of a level in labels i32[B,L].

        Args:
          level: a name, or a number: "0" is the coarsest, "-1" the finest; "" is the finest too.

        Raises:
          ValueError: there is no such level, or the names are not known.
        """
        if level in self.names:
            return self.names.index(level)
        number = int(level or -1) if level.removeprefix("-").isdecimal() or not level else None
        if not self.names:
            if number is None:
                raise ValueError(
                    f"method.level={level!r}: the names of the label levels are not known: they come from the training data"
                    " (Config.for_labels)"
                )
            return number
        if number is None or not -len(self.names) <= number < len(self.names):
            raise ValueError(
                f"method.level={level!r}: the data have the levels {list(self.names)}; give one of these names, or its number"
                " (0 is the coarsest, -1 the finest)"
            )
        return number % len(self.names)

    def of(self, labels: jax.Array, level: str) -> jax.Array:
        """The labels i32[B] at a level, of a batch's labels i32[B,L].

        Raises:
          ValueError: there are no labels, or no such level.
        """
        column = self.column(level)
        if not -labels.shape[1] <= column < labels.shape[1]:
            raise ValueError(
                f"method.level={level!r}: the batch has labels of {labels.shape[1]} level(s); the method learns from labels"
            )
        return labels[:, column]

    def class_count(self, level: str, classes: int = 0) -> int:
        """How many classes a classifier of a level tells apart: `classes`, or as many as the data have if 0.

        Raises:
          ValueError: they are not known, or fewer than the data have.
        """
        column = self.column(level)
        if not self.names:
            if not classes:
                raise ValueError(
                    "the number of classes is not known: it comes from the training data (Config.for_labels), or set"
                    " method.classes"
                )
            return classes
        if classes and classes < self.classes[column]:
            raise ValueError(
                f"method.classes={classes}: the data have {self.classes[column]} at level {self.names[column]!r}; set it to"
                " that or more, or to 0"
            )
        return classes or self.classes[column]

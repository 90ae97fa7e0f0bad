"""How linear probes are trained by gradient descent: the papers' recipes, by name."""

from __future__ import annotations

import dataclasses

from jaxcl.optim import OptimConfig

USUAL_CROP = 0.08
"""The smallest crop, as a share of the image, that is usual for training classifiers."""


@dataclasses.dataclass(frozen=True)
class LinearRecipe:
    """A recipe; its epochs, batch size and learning rate can be replaced by others.

    Attributes:
      optim: optimizer and schedule; `warmup_epochs` and `boundaries` are epochs of `epochs`.
      epochs: passes over the training images.
      batch_size: images at once. The rate of `optim` is for 256 and goes with the batch.
      smallest_crop: share of the image that the smallest random crop has, beside flips; 0: no augmentation, training images
        look as test images do.
      init_std: standard deviation of the classifier's first weights; 0: zeros.
      normalize: the classifier stands on features of length 1.
      smoothing: share of the target that is spread evenly over all classes.
    """

    optim: OptimConfig
    epochs: float
    batch_size: int = 256
    smallest_crop: float = USUAL_CROP
    init_std: float = 0.0
    normalize: bool = False
    smoothing: float = 0.0

    def over(self, epochs: float) -> OptimConfig:
        """Optimizer and schedule for another number of epochs: the rate rises and falls at the same parts of the training."""
        factor = epochs / self.epochs
        return dataclasses.replace(
            self.optim,
            warmup_epochs=self.optim.warmup_epochs * factor,
            boundaries=tuple(b * factor for b in self.optim.boundaries),
        )


def _sgd(base_lr: float, steps: tuple[float, ...] = (), factor: float = 1.0) -> OptimConfig:
    """Plain momentum 0.9 without weight decay; the rate, of 256 images, is multiplied by `factor` after the epochs `steps`."""
    return OptimConfig(
        name="sgd",
        base_lr=base_lr,
        warmup_epochs=0.0,
        weight_decay=0.0,
        schedule="step" if steps else "cosine",
        boundaries=steps,
        decay=factor,
    )


LINEAR_SGD = dataclasses.replace(_sgd(0.1), nesterov=True)
"""SimCLR's optimizer for linear probes."""

LINEAR = {
    # SimCLR, 4.1 and its code, there with batches of 4096.
    "v1": LinearRecipe(LINEAR_SGD, 90.0),
    # MoCo and MoCo v2, main_lincls.py.
    "moco": LinearRecipe(_sgd(30.0, (60.0, 80.0), 0.1), 100.0, init_std=0.01),
    # MoCo v3, main_lincls.py, ResNet-50; for ViT the rate is 3.
    "moco_v3": LinearRecipe(
        dataclasses.replace(_sgd(0.1), per_epoch=True), 90.0, 1024, init_std=0.01
    ),
    # SupContrast, main_linear.py for CIFAR: rate 5 with a batch of 512; after its SimCLR 1.
    "supcon": LinearRecipe(_sgd(2.5, (60.0, 75.0, 90.0), 0.2), 100.0, 512, 0.2),
    # SupCon, Google's code for ImageNet; without its AutoAugment, and normal weights in the place of Glorot's uniform ones.
    "supcon_imagenet": LinearRecipe(
        OptimConfig(
            name="rmsprop",
            base_lr=0.05,
            warmup_epochs=12.0,
            schedule="step",
            boundaries=tuple(12 + n / 2 for n in range(1, 156)),
            decay=0.97,
            b2=0.9,
            eps=1e-3,
            weight_decay=1e-6,
            decayed=(".*",),
            excluded=(),
        ),
        90.0,
        6144,
        init_std=(2 / (2048 + 1000)) ** 0.5,
        normalize=True,
        smoothing=0.05,
    ),
    # LooC, ImageNet-100.
    "looc": LinearRecipe(_sgd(30.0, (120.0, 160.0), 0.1), 200.0, init_std=0.01),
    # HiMulConE, eval_pretrained; its images keep their order, here they are shuffled, and of its epochs the best on validation
    # images is tested, here as in all recipes the last.
    "himulcone": LinearRecipe(_sgd(0.5, (30.0, 60.0, 90.0), 0.2), 100.0, smallest_crop=0.0),
}
"""Name -> recipe. "v1" is also a recipe of fine-tuning, whose others ("v2", "transfer") have SimCLR's linear probe too."""


def linear_recipe(name: str) -> LinearRecipe:
    """The recipe of that name, or SimCLR's for a name that is of fine-tuning only."""
    return LINEAR.get(name, LINEAR["v1"])

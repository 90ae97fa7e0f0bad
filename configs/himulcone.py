"""HiMulConE with the settings of the authors' code (Zhang et al., CVPR 2022), on the data sets of the paper.

    python -m jaxcl.main --config=configs/himulcone.py --config.data.path=DIR --config.init.path=resnet50.safetensors
    python -m jaxcl.main --config=configs/himulcone.py:modelnet40 ...          (or :imagenet, :inaturalist)
    python -m jaxcl.main --config=configs/himulcone.py:imagenet_folders --config.data.path=DIR --config.data.taxonomy=FILE ...
    python -m jaxcl.main --config=configs/himulcone.py:cifar100 --config.data.path=TFDS_DIR         (from scratch)
    python -m jaxcl.main --config=configs/himulcone.py --config.method.form=paper ...
    python -m jaxcl.probe --workdir=runs/himulcone_deepfashion --eval=sgd,retrieval,clustering,hierarchy --recipe=himulcone

The encoder that it begins from, written where PyTorch is installed (torchvision, safetensors):

    python -c "import torchvision, safetensors.torch as s; s.save_file(torchvision.models.resnet50(weights='IMAGENET1K_V1')
    .state_dict(), 'resnet50.safetensors')"

On categories that training has not seen, a quarter of them, beside those that it has (the rows `unseen/...`):

    python -m jaxcl.data.splits --data=inshop:DIR --by=category --together=product --test_split=test --out=deepfashion.json
    python -m jaxcl.main --config=configs/himulcone.py:deepfashion,unseen --config.data.path=DIR ...
    python -m jaxcl.data.splits --data=modelnet40:DIR --by=category --together=model --test_split=test --out=modelnet40.json
    python -m jaxcl.main --config=configs/himulcone.py:modelnet40,unseen --config.data.path=DIR ...

`hicone.py` and `himulcon.py` are the same with the other two losses. `deepfashion` is the In-Shop benchmark (category, product,
variation), `modelnet40` the rendered views (category, model), `imagenet` TFDS's with an ancestor from WordNet above each class
(`data.taxonomy` is ImageNet's wordnet.is_a.txt; `data.taxonomy_depth` says how far from the root; the authors' superclasses are not
published), `imagenet_folders` the same from the usual folders train/ and val/, `inaturalist` the competition of 2017 (supercategory,
species). `jaxcl.data.published` has their layouts. A class that is not deeper than that is its own superclass, with no other class
in it. The command that says how many superclasses there are at a depth:

    python -m jaxcl.data.verify --data=imagenet:DIR --set taxonomy=wordnet.is_a.txt --set "taxonomy_depth=(7,)"

Expected (the paper's, not measured here): ImageNet 79.14 % (linear).

As in the code: ResNet-50 that begins from a trained one, in a file with torchvision's names, of which layers 3 and 4 and the head are
trained on; head 2048-2048-128 with one ReLU and no BatchNorm; crops of at least 0.8 of the image, flip, jitter without hue; tau 0.1,
the loss times tau / 0.07; SGD with learning rate 0.5, not scaled, on a cosine to a thousandth, epoch by epoch, to which it rises from
0.01 over the first 10; weight decay 1e-4 of all that is trained; 100 epochs of batches of 512. The probe's recipe is that of the
linear classifier of the category: 100 epochs of batches of 256 without augmentation, learning rate 0.5, a fifth of it after each
of 30, 60 and 90.

Not as in it: the loss and BatchNorm are those of the whole batch, the code's of the 64 images of a GPU; the statistics of BatchNorm
in the frozen layers go on moving, in both. Batches have 512 images and not the next multiple of a group;
`jaxcl.data.samplers.hierarchical` says how else they differ. For validation a tenth of the products of DeepFashion and of the models
of ModelNet40 is held out of the training images, of ImageNet one in a hundred images and of iNaturalist one in fifty; their test
images are those of the published validation. Which categories were unseen, and how many, is not published. Of the epochs of the
linear classifier the last is scored, in the code the one that is best on validation images. At the end no raw pixels and no
untrained encoder are scored; k-means of ImageNet and iNaturalist, and the linear classifier of iNaturalist and `imagenet_folders`,
are left to the probe. Images are evaluated at the centre 0.875 of their shorter side, the code's at all of it. To begin from an
untrained network, set `--config.init.path= --config.optim.frozen="()"`.

`cifar100` (20 superclasses, 100 classes) is not the paper's. It is `supcon_cifar10.py:cifar100` with a ResNet-18, from scratch, and a
head of 512-512-128: its views and schedule, and its batches of 1024, which are made of groups of relatives.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "deepfashion") -> ConfigDict:
    """The experiment; arg is one of `DATA`, deepfashion and modelnet40 maybe with ",unseen", or cifar100."""
    if arg == "cifar100":
        return cifar100()
    name, _, split = arg.partition(",")
    if name not in DATA or split not in ("", "unseen") or (split and name not in TOGETHER):
        divided = ", ".join(f"{name},unseen" for name in TOGETHER)
        raise ValueError(
            f"{arg!r}: expected {', '.join(DATA)}, {divided} or cifar100 after the colon"
        )
    views = presets.hierarchical(224)
    c = config_lib.base("hierarchical", views, variant="himulcone", temperature=0.1)
    c.name = f"himulcone_{arg.replace(',', '_')}"
    c.batch_size, c.epochs = 512, 100.0
    c.init.path = "resnet50.safetensors"
    c.data.path = name
    c.data.sampler, c.data.image_size, c.data.crop, c.data.workers = "hierarchical", 224, "host", 16
    c.data.on_bad = "skip"
    c.model.name, c.model.zero_init_residual = "resnet50", False
    c.model.mean, c.model.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    c.optim.name, c.optim.base_lr, c.optim.scaling = "sgd", 0.5, "none"
    c.optim.weight_decay, c.optim.decayed, c.optim.excluded = 1e-4, (".*",), ()
    c.optim.warmup_epochs, c.optim.warmup_init = 10.0, 0.02
    c.optim.schedule, c.optim.end = "epoch_cosine", 1e-3
    c.optim.frozen = ("^backbone/stem/", "^backbone/stage[12]_")
    c.optim.method_lr = 0.4  # the joint probe: 0.1 * B / 256, as in SimCLR's linear evaluation
    c.evaluation.gallery, c.evaluation.validation, c.evaluation.ks = "train", "val", (20, 200)
    c.evaluation.test, c.evaluation.test_gallery = "test", "seen"
    c.evaluation.baselines = False
    c.run.log_every, c.run.checkpoint_every = 20, 1000
    DATA[name](c)
    if split:
        unseen(c, f"{name}.json")
    elif name in TOGETHER:
        c.data.holdout, c.data.holdout_together = 0.1, TOGETHER[name]
    return c


def deepfashion(c: ConfigDict) -> None:
    """In-Shop: unseen products, queries against the gallery of the benchmark."""
    c.data.name = "inshop"
    c.evaluation.every, c.evaluation.levels = 450, ("category",)
    c.evaluation.test, c.evaluation.retrieval_gallery = "query", "gallery"
    c.evaluation.extra = ("retrieval", "clustering", "hierarchy")


def modelnet40(c: ConfigDict) -> None:
    """Views of unseen models."""
    c.data.name = "modelnet40"
    c.evaluation.every, c.evaluation.levels = 670, ("category",)
    c.evaluation.extra = ("retrieval", "clustering", "hierarchy")


def unseen(c: ConfigDict, split_file: str) -> None:
    """The same on the categories that a split file leaves for training, and then on the others."""
    c.data.split_file = split_file
    c.evaluation.test, c.evaluation.retrieval_gallery = "test", ""
    c.evaluation.unseen, c.evaluation.unseen_gallery = "unseen_test", "unseen_train"


def imagenet(c: ConfigDict) -> None:
    """Classes and their ancestors at distance 7 from the root of WordNet."""
    c.data.name, c.data.dataset, c.data.path = "tfds", "imagenet2012", ""
    c.data.splits = {
        "train": "train[:99%]",
        "gallery": "train[:5%]",
        "val": "train[99%:]",
        "test": "validation",
    }
    c.data.taxonomy, c.data.taxonomy_depth = "wordnet.is_a.txt", (7,)
    c.method.level = "label"
    c.evaluation.every, c.evaluation.levels = 24_770, ("depth7", "label")
    c.evaluation.gallery, c.evaluation.test_gallery = "gallery", ""
    c.evaluation.extra = ("retrieval", "hierarchy")


def imagenet_folders(c: ConfigDict) -> None:
    """The same from image files. They have no share for a small gallery: it is all of them, and there is none while training."""
    imagenet(c)
    c.data.name, c.data.dataset, c.data.path = "imagenet", "", "imagenet"
    c.data.splits, c.data.holdout = {"test": "val"}, 0.01
    c.evaluation.every, c.evaluation.linear = 0, False
    c.evaluation.gallery, c.evaluation.test_gallery = "train", "seen"


def inaturalist(c: ConfigDict) -> None:
    """Species and supercategories; 579,184 images are a gallery at the end, and too many for one while training."""
    c.data.name, c.data.dataset = "inaturalist", "2017"
    c.data.splits, c.data.holdout = {"test": "val"}, 0.02
    c.evaluation.levels = ("supercategory", "species")
    c.evaluation.linear, c.evaluation.extra = False, ("retrieval", "hierarchy")


def cifar100() -> ConfigDict:
    """Superclasses and classes of CIFAR-100, whose TFDS features are so called."""
    supcon = config_lib.load(f"{Path(__file__).with_name('supcon_cifar10.py')}:cifar100")
    c = config_lib.with_method(supcon, "hierarchical", variant="himulcone", temperature=0.1)
    c.name = "himulcone_cifar100"
    c.data.label_keys, c.data.sampler = ("coarse_label", "label"), "hierarchical"
    c.model.name, c.method.projection.layers = "resnet18", (-1, 128)
    c.evaluation.levels = ("coarse_label", "label")
    c.evaluation.extra = ("retrieval", "clustering", "hierarchy")
    return c


DATA = {
    "deepfashion": deepfashion,
    "modelnet40": modelnet40,
    "imagenet": imagenet,
    "imagenet_folders": imagenet_folders,
    "inaturalist": inaturalist,
}
TOGETHER = {"deepfashion": "product", "modelnet40": "model"}
"""Data with several images of one object -> the label level of the objects."""

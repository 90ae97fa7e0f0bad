"""SimCLR on ImageNet: ResNet-50, batch 4096, on a TPU pod (Chen et al., ICML 2020).

    python -m jaxcl.main --config=configs/simclr_tpu.py --multihost --workdir=gs://BUCKET/simclr      (on every host)
    python -m jaxcl.main --config=configs/simclr_tpu.py:1000 ...                                      (1000 epochs)
    python -m jaxcl.probe --workdir=gs://BUCKET/simclr --eval=sgd --train=train --batch_size=4096 --no-baselines

Expected of the last (the paper's, not measured here): linear accuracy 64.6 % after 100 epochs, 69.3 % after 1000. It learns from
all of the training images for 90 epochs and is scored on the validation images; without `--train` a probe has the 5 % of the
online kNN.

Where paper, README and flags of the official code disagree, this is the paper's: weight decay 1e-6 (README and first flags:
1e-4), a projection head of two layers (flags: three), brightness that adds (flags: version 2's, which multiplies), the mean
over all anchors (code: the sum of both directions, twice that; with LARS only weight decay and the excluded parameters notice).
The learning rate is 0.3 * B / 256 (the README's 0.075 * sqrt(B) is the same at 4096; below that the square root is better:
`optim.scaling="sqrt", optim.base_lr=0.075`). An epoch is N // B steps and leaves out the rest (code: N * E // B + 1 steps in
all, 31,279 instead of 31,200 for 100 epochs). One thing is the code's, because every published checkpoint saw it: its crop
draws the height and not the area, and wants a tenth of the image covered, so that the median area of a 500x375 photograph is
0.34 and not 0.54 of it; the paper's: `--config.views.ops.crop.extent=area --config.views.ops.crop.min_covered=0.0`. The network
computes in bfloat16, as TPUs do; statistics, similarities and the loss in float32. Images are in [0, 1], without mean and
standard deviation.

Preparing ImageNet, once, so that no TensorFlow is needed to read it. The two archives have to be fetched by hand from
image-net.org (ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar), 156 GB; then, in an environment of its own with TensorFlow:

    pip install tensorflow tensorflow-datasets
    mkdir -p ~/tensorflow_datasets/downloads/manual && mv ILSVRC2012_img_{train,val}.tar ~/tensorflow_datasets/downloads/manual
    tfds build imagenet2012 --file_format=array_record

`--config.data.path=DIR` names another place than ~/tensorflow_datasets (a bucket, for a pod). The file format matters:
`tfds.data_source` reads ArrayRecord files at random, TFRecord files only in order.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.views import presets


def get_config(arg: str = "100") -> ConfigDict:
    """The experiment; arg is the number of epochs."""
    c = config_lib.base("simclr", presets.simclr_v1(224), temperature=0.1)
    c.name = "simclr_tpu"
    c.batch_size = 4096
    c.epochs = float(arg)
    c.data.name, c.data.dataset = "tfds", "imagenet2012"
    c.data.splits = {"train": "train", "gallery": "train[:5%]", "val": "validation"}
    c.data.image_size, c.data.crop, c.data.workers = 224, "host", 16
    c.data.on_bad = "skip"
    c.model.name, c.model.stem, c.model.dtype = "resnet50", "imagenet", "bfloat16"
    c.method.projection.layers = (2048, 128)
    c.optim.name, c.optim.base_lr, c.optim.scaling = "lars", 0.3, "linear"
    c.optim.weight_decay, c.optim.warmup_epochs = 1e-6, 10.0
    c.evaluation.every, c.evaluation.gallery, c.evaluation.validation = 3120, "gallery", "val"
    c.evaluation.ks = (20, 200)
    c.run.log_every, c.run.checkpoint_every = 50, 1000
    return c

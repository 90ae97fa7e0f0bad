"""Metric learning on CUB-200-2011, birds of a hundred species, tested on a hundred others.

    python -m jaxcl.main --config=configs/metric_cub200.py --config.data.path=CUB_200_2011 --config.init.path=resnet50.npz
    python -m jaxcl.main --config=configs/metric_cub200.py:LOSS[,MINING] ...
    python -m jaxcl.probe --workdir=runs/metric_cub200 --layer=z --eval=retrieval,clustering --test=test

The settings are the usual ones of the field: ResNet-50 that begins from weights of ImageNet (`init.path`: a file with
torchvision's names, or a workdir of jaxcl), embeddings of 512 numbers, Adam, batches of 128 with four images of a class, crops of
224 pixels and flips. LOSS and MINING are those of `jaxcl.methods.metric`; the default is the multi-similarity loss with its mining.
Proxies have a learning rate of 1e-2.

Training is on the first half of the species, "train_classes" as `jaxcl.data.published.cub` has it; a tenth of its images is
held out for the monitor while training. The test is on the other half: recall@1, 2, 4 and 8, MAP@R and NMI of z by the probe
above. Not measured here. `metric_cars196`, `metric_sop` and `metric_inshop` are this with other data.
"""

from ml_collections import ConfigDict

from jaxcl import config as config_lib
from jaxcl.methods.metric_losses import WITH_PROXIES
from jaxcl.views import presets

PROXY_LR = 1e-2
"""Learning rate of proxies."""


def get_config(arg: str = "multi_similarity,multi_similarity") -> ConfigDict:
    """The experiment; arg is the loss, and maybe its mining."""
    objective, _, mining = arg.partition(",")
    c = config_lib.base(
        "metric",
        presets.crop_flip(224, smallest_crop=0.16),
        objective=objective,
        mining=mining or None,
    )
    c.name = "metric_cub200"
    c.batch_size, c.steps = 128, 4000
    c.data.name, c.data.path = "cub", "CUB_200_2011"
    c.data.splits = {"train": "train_classes", "test": "test_classes"}
    c.data.holdout = 0.1
    c.data.sampler, c.data.per_class = "m_per_class", 4
    c.data.image_size, c.data.crop, c.data.workers = 224, "host", 8
    c.model.name, c.model.zero_init_residual = "resnet50", False
    c.model.mean, c.model.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    c.method.projection.layers = (512,)
    c.optim.name, c.optim.base_lr, c.optim.scaling = "adam", 3e-5, "none"
    c.optim.weight_decay, c.optim.warmup_epochs, c.optim.warmup_steps = 1e-4, 0.0, 200
    if objective in WITH_PROXIES:
        c.optim.method_lr = PROXY_LR / c.optim.base_lr
    c.evaluation.every, c.evaluation.gallery, c.evaluation.validation = 500, "train", "val"
    c.evaluation.retrieval_ks = (1, 2, 4, 8)
    c.run.log_every, c.run.checkpoint_every = 20, 500
    return c

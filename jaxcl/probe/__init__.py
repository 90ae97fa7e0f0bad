"""Probes a checkpoint: `python -m jaxcl.probe --workdir=DIR [--eval=knn,linear,retrieval,...]`.

Only the encoder and its statistics are restored (and a head, if one of its layers is probed), and
scored beside the untrained encoder and the raw pixels. The data are those of the run, or any other
(`--data`), for transfer. `--help` lists the settings.
"""

from jaxcl.probe.descent import FINETUNE, SCRATCH, Descent
from jaxcl.probe.grid import TRANSFER, TRANSFER_SCRATCH, Choice, Grid, search
from jaxcl.probe.inputs import (
    Splits,
    find_step,
    open_splits,
    open_unseen,
    probed_config,
    restore,
)
from jaxcl.probe.networks import PIXELS, TRAINED, UNTRAINED, Networks
from jaxcl.probe.options import EVALUATIONS, Options, ProbeError, parse
from jaxcl.probe.recipes import LINEAR, LINEAR_SGD, LinearRecipe
from jaxcl.probe.run import RESULTS, append, main, probe
from jaxcl.probe.spaces import Spaces

__all__ = [
    "EVALUATIONS",
    "FINETUNE",
    "LINEAR",
    "LINEAR_SGD",
    "PIXELS",
    "RESULTS",
    "SCRATCH",
    "TRAINED",
    "TRANSFER",
    "TRANSFER_SCRATCH",
    "UNTRAINED",
    "Choice",
    "Descent",
    "Grid",
    "LinearRecipe",
    "Networks",
    "Options",
    "ProbeError",
    "Spaces",
    "Splits",
    "append",
    "find_step",
    "main",
    "open_splits",
    "open_unseen",
    "parse",
    "probe",
    "probed_config",
    "restore",
    "search",
]

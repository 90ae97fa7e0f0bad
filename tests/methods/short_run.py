"""Short runs of the small configs on the built-in emoji, and what their encoders are worth."""

import collections
import pathlib

from jaxcl import config as config_lib
from jaxcl import study, train

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def accuracies(root, config, steps, changes=None):
    """kNN accuracies after so many steps of 64 images: features -> {level: accuracy}.

    `config` is a name in configs/, and "name:argument"; `changes` are flattened keys.
    """
    name, colon, arg = config.partition(":")
    c = study.shortened(config_lib.load(f"{CONFIGS / name}.py{colon}{arg}"), steps)
    c.batch_size = 64
    c.run.report, c.run.keep_best, c.mesh.compile_cache = False, False, ""
    c.evaluation.linear = False
    c.update_from_flattened_dict(changes or {})
    found = collections.defaultdict(dict)
    for row in train.train(config_lib.from_dict(c), str(root))["rows"]:
        found[row["features"]][row["level"]] = row["accuracy"]
    return found

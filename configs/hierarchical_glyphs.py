"""HiMulConE on a tree of letters and digits: script / character, each drawn in several fonts; on two CPU cores in about ten minutes.

    apt-get install fonts-noto-core                                  (or any other folder of fonts)
    python -m jaxcl.data.glyphs --fonts=/usr/share/fonts/truetype/noto --out=glyphs
    python -m jaxcl.data.splits --data=folder:glyphs --set labels=path --set "splits={'train': 'train', 'test': 'test'}" \
        --by=level1 --test_split=test --out=glyphs/split.json
    python -m jaxcl.main --config=configs/hierarchical_glyphs.py                          (or :himulcon, :hicone)

`level0` is the script, `level1` the character; the fonts are the members of a leaf. Three quarters of the characters train, in
some families of fonts. The table is about the other families of fonts: `test` has the characters that training has seen,
`unseen/...` the others, whose classes are learned from `unseen_train` alone. Network, optimizer, loss and batches are those of
`hierarchical_emoji`; of its views crop and jitter of brightness and contrast remain, on one channel: letters are grey, and a mirrored
one may be another. Data elsewhere: `--config.data.path=DIR --config.data.split_file=DIR/split.json`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxcl import config as config_lib


def get_config(arg: str = "himulcone") -> ConfigDict:
    """The experiment; arg is himulcon, hicone or himulcone."""
    c = config_lib.load(f"{Path(__file__).with_name('hierarchical_emoji.py')}:{arg}")
    c.name = f"hierarchical_glyphs_{arg}"
    c.data.name, c.data.path, c.data.labels = "folder", "glyphs", "path"
    c.data.splits = {"train": "train", "test": "test"}
    c.data.split_file = "glyphs/split.json"
    c.data.channels = 1
    c.model.mean, c.model.std = (1.0,), (0.3,)
    c.views.order = ("crop", "jitter")
    c.views.ops = {op: c.views.ops[op].to_dict() for op in c.views.order}
    c.evaluation.levels = ("level0", "level1")
    c.evaluation.unseen, c.evaluation.unseen_gallery = "unseen_test", "unseen_train"
    return c

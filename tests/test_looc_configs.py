"""The arguments of the configs of LooC: what each makes, and that none is taken and then does nothing."""

import pathlib
import re

import pytest

from jaxcl import config as config_lib
from jaxcl.config import ConfigError
from jaxcl.data.host_crop import HostCrop

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def load(text):
    name, _, arg = text.partition(":")
    return config_lib.load(f"{CONFIGS / name}.py:{arg}" if arg else CONFIGS / f"{name}.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("looc_emoji:rotat", "no factor 'rotat'; did you mean 'rotate'?"),
        ("looc_emoji:rotate,rotate", "'rotate' is there twice"),
        ("looc_emoji:color,jitter", "'color' and 'jitter' have 'jitter' in common"),
        ("looc_emoji:moco,color,gray", "'color' and 'gray' have 'gray' in common"),
        ("looc_emoji:different", "LooC needs one or more factors"),
        ("looc_emoji:moco,rotate,different", "'different' is for LooC"),
        ("looc_emoji:rotate,same", "'same' is about the rotation of MoCo's views"),
        ("looc_emoji:moco,color,same", "'same' is about the rotation of MoCo's views"),
        ("looc_emoji:moco,moco", "name each option once"),
        ("looc_emoji:moco,flip", "'flip' is always among MoCo's augmentations"),
        ("looc_imagenet100:colour", "no factor 'colour'; did you mean 'color'?"),
        ("looc_imagenet100:color,jitter", "'color' and 'jitter' have 'jitter' in common"),
        ("looc_imagenet100:rotation,rotate", "'rotate' is there twice"),
        ("looc_imagenet100:crop,different", "with the factor 'crop': crops are made on the host"),
        ("looc_imagenet100:moco,blur", "'blur' is always among MoCo's augmentations"),
        ("looc_imagenet100:moco,crop", "'crop' is always among MoCo's augmentations"),
        ("looc_imagenet100:rotation,rotation", "'rotation' is there twice"),
        ("looc_imagenet100:different", "LooC needs one or more factors"),
        ("looc_imagenet100:always", "'always' is about the angles of the rotation"),
        ("looc_imagenet100:color,always", "'always' is about the angles of the rotation"),
        ("looc_imagenet100:moco,rotation,different", "'different' is for LooC"),
        ("looc_imagenet100:moco,color", "'color' is always among MoCo's augmentations"),
        ("looc_imagenet100:moco,same", "'same' is about the rotation of MoCo's views"),
        ("looc_imagenet100:rotation,same", "'same' is about the rotation of MoCo's views"),
        ("looc_pp_imagenet100:moco", "LooC++ is about LooC's heads"),
        ("looc_pp_imagenet100:color,always", "'always' is about the angles of the rotation"),
    ],
)
def test_what_would_do_nothing_is_refused_by_name(text, message):
    with pytest.raises((ValueError, ConfigError), match=re.escape(message)):
        load(text)


def test_any_op_is_a_factor_of_the_small_config():
    for text, order, share in (
        ("blur", ("crop", "flip", "blur"), ({"blur": 0},)),
        (
            "solarize,rotate",
            ("crop", "flip", "rotate", "solarize"),
            ({"solarize": 0}, {"rotate": 0}),
        ),
        ("crop", ("crop", "flip"), ({"crop": 0},)),
    ):
        config = config_lib.from_dict(load(f"looc_emoji:{text}"))
        assert config.views.order == order
        assert tuple(view["share"] for view in config.views.views[2:]) == share
        method = config.for_run(100, 3).build_method()
        assert len(method.heads) == len(share) + 1
    assert (
        load("looc_emoji:solarize").views.ops.solarize.prob == 0.5
    )  # always on would be no factor
    twin = config_lib.from_dict(load("looc_emoji:moco,blur,rotate"))
    assert twin.views.order == ("crop", "flip", "rotate", "blur")
    assert len(twin.views.views) == 2


def test_any_op_is_a_factor_of_the_large_config():
    """Of MoCo v2's own ops and of others; the host's crops are the first op in each."""
    usual = ("crop", "flip", "jitter", "gray", "blur")
    for text, order, share in (
        ("blur", usual, ({"blur": 0},)),
        ("rotate,solarize", (*usual[:2], "rotate", *usual[2:], "solarize"), None),
        ("crop", usual, ({"crop": 0},)),
        ("color,crop", usual, ({"jitter": 0, "gray": 0}, {"crop": 0})),
    ):
        config = config_lib.from_dict(load(f"looc_imagenet100:{text}"))
        assert config.views.order == order
        if share:
            assert tuple(view["share"] for view in config.views.views[2:]) == share
        method = config.for_run(10**5, 1).build_method()
        assert len(method.heads) == len(config.views.views) - 1
        sources = HostCrop.of(method.views, 0).sources
        assert (sources[-1] == 0) == ("crop" in text)
        assert sources[:2] == (0, 1)
    # MoCo's twin has what its views do not have anyway, and is refused what they have.
    twin = config_lib.from_dict(load("looc_imagenet100:moco,solarize"))
    assert twin.views.order == (*usual, "solarize")
    assert len(twin.views.views) == 2
    assert config_lib.from_dict(load("looc_imagenet100:rotate,always")).views.ops == (
        config_lib.from_dict(load("looc_imagenet100:rotation,always")).views.ops
    )


def test_each_option_does_what_it_says():
    large = load("looc_imagenet100:rotation,always,different").views
    assert large.ops.rotate.angles == (90.0, 180.0, 270.0)
    assert [dict(view.get("differ", {})) for view in large.views] == [{}, {"rotate": 0}, {}]
    same = load("looc_imagenet100:moco,rotation,same").views
    assert list(same.views) == [{}, {"share": {"rotate": 0}}]
    texture = load("looc_imagenet100:moco,texture").views
    assert "texture" in texture.order
    assert "rotate" not in texture.order

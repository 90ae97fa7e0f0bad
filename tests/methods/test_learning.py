"""That MoCo and SupCon learn: their small configs, shortened, against the encoder that they begin with.

SimCLR's is in test_simclr.py, with its control.
"""

import pytest
from short_run import accuracies


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "margin"),
    [
        # Of two seeds and two levels MoCo gained 6.0 to 11.9 points, SupCon 11.6 to 15.2.
        ("moco_emoji", 0.03),
        ("supcon_emoji", 0.06),
    ],
)
def test_it_learns(tmp_path, config, margin):
    """A narrower network than the config's, for 200 steps."""
    found = accuracies(tmp_path, config, 200, {"model.width": 0.125})
    trained, untrained = found["trained encoder"], found["untrained encoder"]
    assert sorted(trained) == ["category", "subcategory"]
    for level, accuracy in trained.items():
        assert accuracy > untrained[level] + margin, (level, found)

"""Compares with torch libraries; without them (tests/peers/requirements.txt) nothing here is collected."""

import importlib
import importlib.util
import warnings

NEEDED = ("torch", "lightly", "pytorch_metric_learning")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if missing else []

if not missing:
    # Warnings are errors in this suite; what the peers warn of while they are imported is theirs.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("torch", "lightly.loss", "pytorch_metric_learning.losses"):
            importlib.import_module(name)


def pytest_report_header():
    """Says why a run of this directory finds nothing."""
    return f"tests/peers: not collected, {', '.join(missing)} not installed" if missing else None

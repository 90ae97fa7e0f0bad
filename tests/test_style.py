"""Lint, format and types are part of the tests, so that one command checks everything."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)],
    ids=["lint", "format", "types"],
)
def test_style(command):
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_code_is_read_from_data():
    """No pickle, eval or exec anywhere, and no TensorFlow or torch at import."""
    import ast

    banned_calls = {"eval", "exec"}
    banned_imports = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
    for path in sorted((ROOT / "jaxcl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in banned_calls, f"{path}:{node.lineno}"
            if isinstance(node, ast.Import):
                assert not banned_imports & {a.name for a in node.names}, f"{path}:{node.lineno}"
            if isinstance(node, ast.ImportFrom):
                assert node.module not in banned_imports, f"{path}:{node.lineno}"


def test_import_needs_no_tensorflow_or_torch_and_starts_no_device():
    code = (
        "import sys, jaxcl.train, jax._src.xla_bridge as xb\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules), 'heavy import'\n"
        "assert not xb.backends_are_initialized(), 'a device was started'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

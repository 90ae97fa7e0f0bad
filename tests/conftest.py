"""Every test process has eight virtual CPU devices; they must be set before JAX starts.

Programs are many and small here, so that compiling them takes longer than running them: LLVM optimises nothing, unless XLA_FLAGS
asks for it (as `.ci/run` does for the slow tests, and for the main job).
"""

import os

if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    )

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Compiled programs of one module do not fill the memory of the next."""
    yield
    jax.clear_caches()

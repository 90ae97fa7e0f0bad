"""Every test process has eight virtual CPU devices; they must be set before JAX starts."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Compiled programs of one module do not fill the memory of the next."""
    yield
    jax.clear_caches()

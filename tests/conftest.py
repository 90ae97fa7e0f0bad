"""Every test process has eight virtual CPU devices; they must be set before JAX starts.

Programs are many and small here, so that compiling them takes longer than running them: LLVM optimises nothing but in tests that
are marked `optimised`, which run for longer, or look at what the compiler makes.
"""

import os

UNOPTIMISED = "JAX_DISABLE_MOST_OPTIMIZATIONS"
os.environ[UNOPTIMISED] = "1"  # for the processes that a test starts, too

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Around the fixtures of a test as well, which compile too."""
    if item.get_closest_marker("optimised") is None:
        return (yield)
    jax.config.update(UNOPTIMISED.lower(), False)
    os.environ[UNOPTIMISED] = "0"
    try:
        return (yield)
    finally:
        jax.config.update(UNOPTIMISED.lower(), True)
        os.environ[UNOPTIMISED] = "1"


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Compiled programs of one module do not fill the memory of the next."""
    yield
    jax.clear_caches()

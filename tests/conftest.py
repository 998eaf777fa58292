"""Fixtures and settings that every test shares."""

import gc
import itertools
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import pytest

from script_fixtures import (  # noqa: F401  fixtures
    call_script,
    call_script_in_module,
    made_once,
    parse_flags,
    run_command,
    run_without,
    settings_end_with_the_test,
    sharded_corpus,
    tiny_characters,
    tiny_corpus,
    tiny_recipe,
    tiny_text,
    trained_ctc,
    trained_language,
    trained_speech,
)

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def pytest_configure(config):
    # Two logical CPUs let MirroredStrategy be tested with two replicas; they must exist
    # before TensorFlow first touches its devices.
    import hypothesis
    import tensorflow as tf

    # A change meets the same few examples each time, `make test-all` many new ones.
    few = "not exhaustive" in config.getoption("markexpr")
    hypothesis.settings.register_profile(
        "layers",
        max_examples=16 if few else 200,
        derandomize=few,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("layers")

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items):
    import conformance

    for item in items:
        case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
        if not isinstance(case, conformance.Case) or item.get_closest_marker("every_case"):
            continue
        by_route = item.get_closest_marker("by_route")
        if case.name not in (conformance.ROUTES if by_route else conformance.REPRESENTATIVES):
            item.add_marker("exhaustive")


def pytest_collection_finish():
    # What imports have made stays; collections, which graphs bring about often, pass over it.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real text and speech that measurements use, beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(
            f"the real data of the tests is absent: no folder {SHARED_DATA.name!r} in "
            "../shared beside the checkout"
        )
    return SHARED_DATA


@pytest.fixture(autouse=True, scope="session")
def separate_collectives():
    """Gives each `MirroredStrategy` collective keys of its own.

    Two strategies in one process number their collectives alike, and on CPUs the second then meets
    shapes and sums of the first.
    """
    import tensorflow as tf

    bases = itertools.count(100_000, 100_000)
    make = tf.distribute.MirroredStrategy.__init__

    def make_with_own_keys(strategy, *args, **kwargs):
        strategy._collective_key_base = next(bases)  # Private; so in TensorFlow 2.16 to 2.21.
        make(strategy, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.distribute.MirroredStrategy, "__init__", make_with_own_keys)
        yield


@pytest.fixture(scope="module")
def strategy():
    """Two replicas on the logical CPUs."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(autouse=True, scope="module")
def forgotten_graphs():
    """Lets go of a module's graphs.

    TensorFlow registers the gradient of every traced `tf.custom_gradient` for good, and with it
    the graph that it is of: gigabytes by the end of the suite.
    """
    yield
    # Private; so in TensorFlow 2.16 to 2.21.
    from tensorflow.python.framework import ops

    registered = ops.gradient_registry._registry
    for name in [name for name in registered if name.startswith("CustomGradient-")]:
        del registered[name]
    gc.collect()

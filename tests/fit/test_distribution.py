"""Devices and workers: who reads what, the same answer as one device, and what Keras lacks."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import equality
import workers
from keras_bnrnn import BatchNormSimpleRNN
from keras_bnrnn.fit import FitError, distribution, keras_overrides
from keras_bnrnn.fit.distribution import Worker, distribute, make_strategy, worker_of
from keras_bnrnn.fit.loop import prepare
from keras_bnrnn.losses import FrameMeanCrossEntropy


@pytest.fixture
def mirrored():
    strategy = make_strategy("mirrored")
    assert strategy.num_replicas_in_sync == 2
    return strategy


def local(strategy, value):
    return [np.asarray(one) for one in strategy.experimental_local_results(value)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", equality.KINDS)
@pytest.mark.parametrize(
    "model", [pytest.param("baseline", marks=pytest.mark.exhaustive), "batch_norm"]
)
def test_ten_steps_are_those_of_one_device(kind, model, tmp_path):
    for strategy, (weights, statistics) in equality.deviations(kind, model, tmp_path).items():
        assert weights < 1e-5, strategy
        assert statistics < 1e-5, strategy


def test_a_partial_batch_is_filled_up_and_nothing_is_lost(mirrored):
    numbers = np.arange(1, 10)
    inputs = {"values": numbers[:, np.newaxis].repeat(3, axis=1), "lengths": 3 + numbers}
    arrays = (inputs, numbers, np.ones(9, np.float32))
    dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(4)
    for skip in (0, 2):
        distributed, steps = distribute(dataset, mirrored, 4, skip)
        assert steps == 3 - skip
        seen = [
            tf.nest.map_structure(lambda part: local(mirrored, part), batch)
            for batch in distributed
        ]
        assert len(seen) == steps
        expected = [*numbers[4 * skip :], 0, 0, 0]
        live = np.sign(expected)
        for pick, wanted in (
            (lambda batch: batch[0]["values"], np.repeat(expected, 3).reshape(-1, 3)),
            (lambda batch: batch[0]["lengths"], (3 + np.array(expected)) * live),
            (lambda batch: batch[1], expected),
            (lambda batch: batch[2], live),
        ):
            assert all(len(half) == 2 for batch in seen for half in pick(batch))
            np.testing.assert_array_equal(
                np.concatenate([np.concatenate(pick(b)) for b in seen]), wanted
            )


def test_frames_count_alike_on_unequal_replicas(mirrored):
    """The loss is the mean over all live frames, not the mean of the replicas' means."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, 6, 3)).astype(np.float32)
    labels = rng.integers(0, 3, (4, 6))
    weights = (np.arange(6) < np.array([6, 5, 1, 0])[:, None]).astype(np.float32)
    loss = FrameMeanCrossEntropy(from_logits=True)
    alone = float(loss(labels, scores, weights))
    picked = np.take_along_axis(
        scores - np.logaddexp.reduce(scores, -1, keepdims=True), labels[..., None], -1
    )
    np.testing.assert_allclose(alone, -(picked[..., 0] * weights).sum() / weights.sum(), rtol=1e-6)

    def part(array):
        return mirrored.experimental_distribute_values_from_function(
            lambda context: tf.constant(array[2 * context.replica_id_in_sync_group :][:2])
        )

    run = tf.function(lambda *arguments: mirrored.run(loss, arguments))
    parts = local(mirrored, run(part(labels), part(scores), part(weights)))
    np.testing.assert_allclose(sum(parts), alone, rtol=1e-6)
    assert loss.get_config() == FrameMeanCrossEntropy.from_config(loss.get_config()).get_config()
    masked = np.where(weights[..., None] > 0, scores, np.inf)
    np.testing.assert_allclose(float(loss(labels, masked, weights)), alone, rtol=1e-6)


def test_statistics_that_are_not_synchronized_are_saved_as_their_mean(mirrored, tmp_path):
    keras.utils.set_random_seed(0)
    with mirrored.scope():
        model = keras.Sequential([keras.Input((3, 3)), BatchNormSimpleRNN(2)])
        model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3, 3)) + np.array([0, 0, 5, 5])[:, None, None]
    dataset = tf.data.Dataset.from_tensors((tf.cast(x, tf.float32), tf.zeros([4, 2])))
    prepare(model, mirrored, dataset, 4)
    distributed, steps = distribute(dataset, mirrored, 4)
    model.fit(distributed, steps_per_epoch=steps, verbose=0)
    [moving] = [weight for weight in model.weights if weight.name == "moving_mean"]
    first, second = local(mirrored, moving.value)
    assert np.abs(first - second).max() > 0.01
    model.save(tmp_path / "model.keras")
    saved = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    [loaded] = [weight for weight in saved.weights if weight.name == "moving_mean"]
    np.testing.assert_allclose(loaded, (first + second) / 2, rtol=1e-6)


def clipped_step(strategy, prepared):
    """One step of a linear model whose replicas have unequal gradients, with a tight bound."""
    with strategy.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        model.compile(keras.optimizers.SGD(1.0, global_clipnorm=0.1), "mse")
    model.set_weights([np.zeros((2, 1))])
    x = np.array([[1, 0], [1, 0], [0, 9], [0, 9]], np.float32)
    dataset = tf.data.Dataset.from_tensors((x, np.ones((4, 1), np.float32)))
    if prepared:
        prepare(model, strategy, dataset, 4)
        dataset, _ = distribute(dataset, strategy, 4)
    model.fit(dataset, steps_per_epoch=1, verbose=0)
    return model.get_weights()[0][:, 0]


def test_clipping_is_that_of_the_sum(mirrored):
    alone = clipped_step(tf.distribute.get_strategy(), prepared=False)
    np.testing.assert_allclose(np.linalg.norm(alone), 0.1, rtol=1e-5)
    np.testing.assert_allclose(clipped_step(mirrored, prepared=True), alone, rtol=1e-5)


def test_keras_alone_clips_before_the_sum(mirrored):
    """Should this fail, `keras_overrides.clip_after_sum` is needed for the norm only."""
    alone = clipped_step(tf.distribute.get_strategy(), prepared=False)
    assert np.abs(clipped_step(mirrored, prepared=False) - alone).max() > 1e-3


def test_the_optimizer_is_saved_as_keras_has_it(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1, global_clipnorm=1.0), "mse")
    before = model.optimizer.get_config()
    keras_overrides.clip_after_sum(model.optimizer)
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    assert model.optimizer.gradient_norm.take() > 0.0
    assert model.optimizer.gradient_norm.take() == 0.0
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == before
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables) == 2
    assert type(loaded.optimizer) is keras.optimizers.SGD


WORKER = """
import sys
import numpy as np, tensorflow as tf, keras
from keras_bnrnn.fit import keras_overrides
import workers
from keras_bnrnn.fit.distribution import distribute, make_strategy
from keras_bnrnn.fit.loop import prepare

without = sys.argv[1]
strategy = make_strategy("multi_worker")
with strategy.scope():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
data = tf.data.Dataset.from_tensors((tf.ones([2, 2]), tf.ones([2, 1])))
if without:
    setattr(keras_overrides, without, lambda *arguments: None)
    if without == "build_metrics":
        build = model._maybe_symbolic_build
prepare(model, strategy, data, 2)
if without == "build_metrics":
    model._maybe_symbolic_build = build
data, steps = distribute(data, strategy, 2)
model.fit(data, steps_per_epoch=steps, verbose=0)
"""


def fit_on_two_workers(without):
    """The exit codes and output of two processes that train a Dense model together."""
    path = os.pathsep.join([os.path.dirname(distribution.__file__), *sys.path])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, without],
            env={**environment, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for environment in workers.environments(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    return [process.returncode for process in processes], outputs


@pytest.mark.slow
def test_two_workers_fit():
    codes, outputs = fit_on_two_workers("")
    assert codes == [0, 0], outputs


@pytest.mark.slow
@pytest.mark.parametrize("override", ["build_metrics", "reduce_over_an_axis"])
def test_keras_alone_fails_on_two_workers(override):
    """Should this fail, Keras can do it and the override can go."""
    codes, outputs = fit_on_two_workers(override)
    assert 0 not in codes, outputs
    assert "Traceback" in outputs[0]


@pytest.mark.parametrize("option", [{"jit_compile": True}, {"steps_per_execution": 2}])
def test_keras_alone_fails_with_what_is_refused(mirrored, option):
    """Should this fail, Keras can do it and `set_up_tensorflow` need not refuse it."""
    with mirrored.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", **option)
    with pytest.raises(tf.errors.InvalidArgumentError):
        model.fit(np.ones((16, 2)), np.ones((16, 1)), batch_size=4, verbose=0)


def test_too_few_examples_for_the_replicas(mirrored):
    distribution.check_batch_size(4, 2, mirrored)
    with pytest.raises(FitError, match="does not divide over 2 replicas"):
        distribution.check_batch_size(3, 9, mirrored)
    with pytest.raises(FitError, match="1 examples, too few for 2 replicas"):
        distribution.check_batch_size(4, 1, mirrored)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "needs the environment variable TF_CONFIG"),
        ("{", "is not as in"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', "is not as in .* KeyError 'task'"),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
            "is none of the workers",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}',
            "two or more workers",
        ),
        ('{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}', "in lists"),
        (
            '{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}',
            "an address is twice",
        ),
        (
            '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "ps", "index": 0}}',
            "a chief and workers can train",
        ),
        ("[]", "is not as in"),
    ],
)
def test_a_wrong_tf_config_is_said(monkeypatch, config, message):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(FitError, match=message):
        make_strategy("multi_worker")


def test_what_is_made_before_machines_connect_is_said(monkeypatch):
    def too_late():
        raise RuntimeError("Collective ops must be configured at program startup")

    monkeypatch.setenv("TF_CONFIG", distribution.TF_CONFIG_EXAMPLE)
    monkeypatch.setattr(distribution, "meet", lambda own, others: None)
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", too_late)
    with pytest.raises(FitError, match="make datasets and tensors later, in functions"):
        make_strategy()


def test_texts_are_gathered(mirrored):
    for text in ("", "größer, \u2028 and more"):
        assert distribution.gather_texts(mirrored, text) == ([text] if text else [])


@pytest.fixture
def of_two(monkeypatch):
    """Makes this process worker 1 of two, of which worker 0 says what is appended to the list."""
    said = []
    monkeypatch.setattr(distribution, "worker_of", lambda strategy: Worker(1, 2))
    monkeypatch.setattr(
        distribution,
        "gather_texts",
        lambda strategy, text: [said.pop(0), said.append(text) or text],
    )
    return said


def test_workers_that_were_started_differently_are_told(of_two):
    of_two.append('{"--epochs": 3, "--seed": 1}')
    distribution.agree(None, {"--epochs": 3, "--seed": 1})
    of_two[:] = ['{"--epochs": 3, "--seed": 1}']
    with pytest.raises(FitError, match="differ in --epochs: 3 on worker 0, 4 on worker 1; start"):
        distribution.agree(None, {"--epochs": 4, "--seed": 1})


def test_a_refusal_reaches_all(of_two):
    of_two.append("")
    with distribution.refusals_shared(None):
        pass
    of_two[:] = ["no such file: a"]
    refused = pytest.raises(FitError, match="refused, worker 0: no such file: a")
    with refused, distribution.refusals_shared(None):
        pass
    of_two[:] = [""]
    with pytest.raises(KeyError), distribution.refusals_shared(None):
        raise KeyError("of mine")
    assert of_two == ["'of mine'"]
    of_two[:] = [""]
    with pytest.raises(tf.errors.UnavailableError), distribution.refusals_shared(None):
        raise tf.errors.UnavailableError(None, None, "gone")
    assert of_two == [""]  # Nobody is told: there is no collective any more.


def test_a_chief_is_the_first_worker(monkeypatch):
    config = (
        '{"cluster": {"worker": ["b:1", "c:1"], "chief": ["a:1"]}, '
        '"task": {"type": "worker", "index": 1}}'
    )
    monkeypatch.setenv("TF_CONFIG", config)
    assert distribution._workers_of_environment() == ["a:1", "b:1", "c:1"]
    strategy = object.__new__(tf.distribute.MultiWorkerMirroredStrategy)
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    monkeypatch.setattr(type(strategy), "cluster_resolver", resolver)
    assert worker_of(strategy) == Worker(2, 3)
    monkeypatch.setenv("TF_CONFIG", config.replace('"worker", "index": 1', '"chief", "index": 0'))
    assert worker_of(strategy) == Worker(0, 3)


def test_one_device_does_not_look_at_tf_config(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{")
    assert make_strategy("none").num_replicas_in_sync == 1
    with pytest.raises(FitError, match="is not as in"):
        make_strategy("auto")


def test_one_process_is_the_only_worker(mirrored):
    assert worker_of(tf.distribute.get_strategy()) == worker_of(mirrored) == Worker(0, 1)
    assert Worker().is_chief and not Worker(1, 2).is_chief


def test_an_error_that_comes_back_is_raised_in_the_end(monkeypatch, tmp_path, capsys):
    """The command is started again a few times per checkpoint, not for ever."""
    started = []
    monkeypatch.setattr(os, "execv", lambda *command: started.append(command))
    monkeypatch.setenv("TF_CONFIG", distribution.TF_CONFIG_EXAMPLE)
    monkeypatch.setenv(distribution.REJOINED, "")

    @distribution.rejoined_after_losing_a_worker(tmp_path)
    def lose():
        raise tf.errors.UnavailableError(None, None, "gone")

    for checkpoint in ("epoch-0001", "epoch-0001-step-000010"):
        (tmp_path / "checkpoints" / checkpoint).mkdir(parents=True)
        started.clear()
        for _ in range(distribution.MOST_TIMES_REJOINED):
            lose()
        with pytest.raises(tf.errors.UnavailableError):
            lose()
        assert len(started) == distribution.MOST_TIMES_REJOINED
    assert "Another worker is gone (UnavailableError)" in capsys.readouterr().err
    started.clear()
    monkeypatch.delenv("TF_CONFIG")
    with pytest.raises(tf.errors.UnavailableError):
        lose()
    assert not started

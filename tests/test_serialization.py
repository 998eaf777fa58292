"""Configurations, clones, `.keras` files, weight files and SavedModels of every layer and mode."""

import inspect
import itertools
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import conformance
import keras_bnrnn
from conformance import (
    BATCH,
    CASES,
    CONTAINERS,
    FEATURES,
    MAIN_CASES,
    SLOW_CASES,
    TIME,
    UNITS,
    assert_all_close,
)

LAYERS = [keras_bnrnn.BatchNormSimpleRNN, keras_bnrnn.BatchNormLSTM, keras_bnrnn.BatchNormGRU]
CELLS = [
    keras_bnrnn.BatchNormSimpleRNNCell,
    keras_bnrnn.BatchNormLSTMCell,
    keras_bnrnn.BatchNormGRUCell,
]
CLASSES = LAYERS + CELLS
# What the classes take beyond their namesakes' arguments, by keyword only.
OWN_ARGUMENTS = [
    "normalization",
    "normalize_recurrent",
    "max_timesteps",
    "renorm",
    "renorm_clipping",
    "momentum",
    "epsilon",
    "gamma_initializer",
    "gamma_regularizer",
    "gamma_constraint",
    "moving_mean_initializer",
    "moving_variance_initializer",
]
# Every argument away from its default; a class takes those it knows.
UNUSUAL = {
    "units": UNITS,
    "activation": "relu",
    "recurrent_activation": "hard_sigmoid",
    "use_bias": False,
    "kernel_initializer": "he_normal",
    "recurrent_initializer": "glorot_normal",
    "bias_initializer": "ones",
    "unit_forget_bias": False,
    "kernel_regularizer": "l1",
    "recurrent_regularizer": "l2",
    "bias_regularizer": "l1",
    "activity_regularizer": "l2",
    "kernel_constraint": "max_norm",
    "recurrent_constraint": "unit_norm",
    "bias_constraint": "non_neg",
    "dropout": 0.25,
    "recurrent_dropout": 0.125,
    "reset_after": False,
    "seed": 7,
    "return_sequences": True,
    "return_state": True,
    "go_backwards": True,
    "zero_output_for_mask": True,
    "stateful": True,
    "unroll": True,
    "use_cudnn": False,
    "normalization": "frame",
    "normalize_recurrent": True,
    "normalize_cell_state": True,
    "max_timesteps": 4,
    "renorm": True,
    "renorm_clipping": {"rmax": 2.0},
    "momentum": 0.5,
    "epsilon": 0.25,
    "gamma_initializer": keras.initializers.Constant(0.1),
    "gamma_regularizer": keras.regularizers.L1L2(0.1, 0.2),
    "gamma_constraint": keras.constraints.MinMaxNorm(0.1, 0.9),
    "moving_mean_initializer": "ones",
    "moving_variance_initializer": keras.initializers.Constant(3.0),
    "name": "unusual",
    "dtype": "mixed_float16",
    "trainable": False,
}


def _namesake(layer_class):
    return getattr(keras.layers, layer_class.__name__.removeprefix("BatchNorm"))


def _namesakes_arguments(layer_class):
    """The namesake's own positional arguments, in its order."""
    parameters = inspect.signature(_namesake(layer_class).__init__).parameters.values()
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [p.name for p in parameters if p.kind is positional and p.name != "self"]


def _arguments(layer_class):
    extra = ["normalize_cell_state"] if "LSTM" in layer_class.__name__ else []
    if layer_class in LAYERS:
        extra += ["zero_output_for_mask"]
    return [*_namesakes_arguments(layer_class), *OWN_ARGUMENTS, *extra]


def _json(config):
    return json.loads(json.dumps(config, sort_keys=True))


@pytest.mark.parametrize("layer_class", CLASSES, ids=lambda c: c.__name__)
def test_every_argument_survives_the_config(layer_class):
    names = _arguments(layer_class) + ["name", "dtype", "trainable"]
    layer = layer_class(**{name: UNUSUAL[name] for name in names})
    config = _json(layer.get_config())
    default = _json(layer_class(UNITS + 1).get_config())
    for name in names:
        if name == "normalization" and layer_class in CELLS:
            continue  # "frame" is a cell's default
        assert config[name] != default[name], name
    again = layer_class.from_config(layer.get_config())
    assert _json(again.get_config()) == config


def test_use_cudnn_is_for_the_layers_that_have_a_kernel():
    with pytest.raises((TypeError, ValueError), match="use_cudnn"):
        keras_bnrnn.BatchNormSimpleRNN(UNITS, use_cudnn=False)


@pytest.mark.parametrize("layer_class", LAYERS, ids=lambda c: c.__name__)
def test_synchronized_survives_the_config(layer_class):
    layer = layer_class(UNITS, synchronized=True)
    assert layer_class.from_config(layer.get_config()).get_config()["synchronized"] is True


@pytest.mark.parametrize("layer_class", CLASSES, ids=lambda c: c.__name__)
def test_registered(layer_class):
    expected = f"keras_bnrnn>{layer_class.__name__}"
    assert keras.saving.get_registered_name(layer_class) == expected
    assert keras.saving.get_registered_object(expected) is layer_class


def test_bidirectional_registered():
    assert keras.saving.get_registered_name(keras_bnrnn.Bidirectional).startswith("keras_bnrnn>")


@pytest.mark.parametrize("layer_class", CLASSES, ids=lambda c: c.__name__)
def test_defaults_are_the_namesakes(layer_class):
    """A Keras user can swap one for the other and nothing else changes."""
    theirs = _json(_namesake(layer_class)(UNITS, name="same").get_config())
    config = _json(layer_class(UNITS, name="same").get_config())
    assert {name: config[name] for name in theirs} == theirs


@pytest.mark.parametrize("layer_class", CLASSES, ids=lambda c: c.__name__)
def test_positional_arguments_are_the_namesakes(layer_class):
    names = _namesakes_arguments(layer_class)
    values = [UNUSUAL[name] for name in names]
    by_position = layer_class(*values, name="same")
    by_keyword = layer_class(**dict(zip(names, values, strict=True)), name="same")
    assert _json(by_position.get_config()) == _json(by_keyword.get_config())
    theirs = _json(_namesake(layer_class)(*values, name="same").get_config())
    theirs.pop("activity_regularizer", None)  # keras.layers.SimpleRNN forgets its own
    config = _json(by_position.get_config())
    assert {name: config[name] for name in theirs} == theirs
    with pytest.raises(TypeError):
        layer_class(*values, "frame")


@pytest.mark.parametrize("layer_class", LAYERS, ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    "arguments",
    [
        {"normalization": "sequence", "synchronized": True},
        {"normalization": "frame", "normalize_recurrent": True, "max_timesteps": 3},
        {"normalization": None},
    ],
    ids=["sequence", "frame", "none"],
)
def test_the_configuration_of_each_part_describes_it(layer_class, arguments):
    """Of a layer, its cell, a cell by itself, and their normalisers."""
    layer = layer_class(UNITS, **arguments)
    objects = [layer, layer.cell]
    if arguments["normalization"] != "sequence":
        objects.append(layer_class.cell_class(UNITS, **arguments))
        assert set(layer.cell.get_config()) - set(objects[-1].get_config()) == {"in_layer"}
    for cell in objects[1:]:
        normalizers = (cell.normalizer, cell.recurrent_normalizer)
        objects += [normalizer for normalizer in normalizers if normalizer is not None]
    for one in objects:
        config = one.get_config()
        again = type(one).from_config(_json(config))
        assert _json(again.get_config()) == _json(config)
        for name in {"state_size", "normalization", "synchronized", "max_timesteps"} & {*dir(one)}:
            assert getattr(again, name) == getattr(one, name), (one, name)
    assert {name: getattr(layer.cell, name) for name in arguments} == arguments
    assert type(layer.cell) is layer_class.cell_class


def test_a_file_of_version_0_1_still_loads():
    """Layers in a wrapper and not, counting cells in a bare RNN, a layer's cell called alone."""
    model = keras.models.load_model(Path(__file__).parent / "saved" / "layers_and_cells.keras")
    expected = [
        [0.39637375, 0.00168851],
        [0.38021064, -0.0012299],
        [0.3696152, -0.00597334],
        [0.3915229, 0.01015392],
    ]
    x = np.random.default_rng(0).normal(size=(4, 5, FEATURES)).astype("float32")
    np.testing.assert_allclose(model(x), expected, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_config_round_trip(case):
    layer = case.layer()
    serialized = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(_json(serialized))
    assert type(again) is case.layer_class
    assert _json(again.get_config()) == _json(layer.get_config())


def _inputs(seed=0, time=TIME):
    x = np.random.default_rng(seed).normal(size=(BATCH, time, FEATURES)).astype("float32")
    x[1, 3:] = 0.0
    return x


@pytest.mark.by_route
@pytest.mark.parametrize("case", MAIN_CASES, ids=str)
def test_clone_keras_file_and_weights_file(case, tmp_path):
    model = conformance.model_of("sequential", case)
    x = _inputs()
    expected = model(x)

    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone(x), expected)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), expected)
    assert [w.name for w in loaded.weights] == [w.name for w in model.weights]

    model.save_weights(tmp_path / "model.weights.h5")
    fresh = conformance.model_of("sequential", case, seed=1)
    assert np.any(np.asarray(fresh(x)) != np.asarray(expected))
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(fresh(x), expected)


# Every container with one layer.
CONTAINED = [
    (container, conformance.find("lstm-frame_recurrent_cell_steps")) for container in CONTAINERS
]
# A subclassed model's class belongs to whoever wrote it: Keras neither clones it nor loads it.
KNOWN_TO_KERAS = [(container, case) for container, case in CONTAINED if container != "subclassed"]
ALL_CONTAINED = list(itertools.product(CONTAINERS, SLOW_CASES))
ALL_KNOWN_TO_KERAS = [one for one in ALL_CONTAINED if one[0] != "subclassed"]


@pytest.mark.parametrize(
    ("container", "case"), conformance.parameters(ALL_CONTAINED, CONTAINED), ids=str
)
def test_clone_and_weights_file_in_every_container(container, case, tmp_path):
    model = conformance.model_of(container, case)
    x = _inputs()
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = conformance.model_of(container, case, seed=1)
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(fresh(x), model(x))
    assert_all_close(fresh.weights, model.weights)
    if container != "subclassed":
        clone = keras.models.clone_model(model)
        clone.set_weights(model.get_weights())
        np.testing.assert_array_equal(clone(x), model(x))


EXTRAS = ["espeakng_loader", "kaldiio", "pocketsphinx", "soundfile", "soxr", "tensorflow_text"]
LOADER = """
import sys
import keras_bnrnn
import keras, numpy as np
for line in sys.argv[1:]:
    data = np.load(line + ".npz")
    model = keras.models.load_model(line + ".keras")
    np.testing.assert_allclose(model(data["x"]), data["y"], rtol=1e-6, atol=1e-6)
    assert len(model.trainable_weights) == data["trainable"], line
    print("loaded")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "models",
    [
        [*(("sequential", case) for case in SLOW_CASES), *KNOWN_TO_KERAS[1:]],
        pytest.param(ALL_KNOWN_TO_KERAS, marks=pytest.mark.exhaustive),
    ],
    ids=["some", "all"],
)
def test_a_new_process_loads_after_importing_only_keras_bnrnn(models, tmp_path, run_without):
    """Everything, in one process without the extras: starting one takes longer than the rest."""
    x = _inputs()
    waveform = np.sin(np.arange(800.0, dtype="float32"))[np.newaxis]
    filter_bank = keras.Sequential([keras_bnrnn.data.LogMelFilterBank(sample_rate=8000)])
    saved = {"filter_bank": (filter_bank, waveform)}
    for container, case in models:
        saved[f"{case}-{container}"] = conformance.model_of(container, case), x
    paths = [tmp_path / name for name in saved]
    for path, (model, inputs) in zip(paths, saved.values(), strict=True):
        outputs = model(inputs)
        model.save(f"{path}.keras")
        np.savez(path, x=inputs, y=outputs, trainable=len(model.trainable_weights))
    done = run_without(EXTRAS, LOADER, *paths)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("loaded") == len(paths)


@pytest.mark.parametrize(
    ("container", "case"),
    conformance.parameters(
        [*(("sequential", case) for case in SLOW_CASES), *CONTAINED[1:]],
        [("sequential", conformance.find("lstm-sequence"))],
    ),
    ids=str,
)
def test_saved_model(container, case, tmp_path):
    """The exported function takes any batch and length and answers as the model at inference."""
    model = conformance.model_of(container, case)
    if container == "subclassed":
        signature = [keras.InputSpec(shape=(None, None, FEATURES), dtype="float32")]
        model.export(tmp_path / "model", verbose=False, input_signature=signature)
    else:
        model.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(tmp_path / "model")
    # Keras's TimeDistributed exports a batch of unknown size, but loops over a known time only.
    times = (TIME, TIME, TIME) if container == "time_distributed" else (TIME, 1, 8)
    for batch, time in zip((BATCH, 1, 3), times, strict=True):
        x = np.random.default_rng(time).normal(size=(batch, time, FEATURES)).astype("float32")
        np.testing.assert_allclose(served.serve(tf.constant(x)), model(x), rtol=1e-5, atol=1e-6)


def test_saved_model_of_a_training_call(tmp_path):
    """`tf.saved_model.save` of a function that trains: the statistics move in the loaded one.

    TensorFlow cannot save a custom gradient that reads what a loop has kept, so it must not try.
    """
    layer = conformance.find("lstm-sequence").layer(return_state=False, dtype="float32")
    layer.build((None, None, FEATURES))

    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.weights = [weight.value for weight in layer.weights]

        @tf.function(input_signature=[tf.TensorSpec([None, None, FEATURES])])
        def train(self, x):
            return layer(x, training=True)

    module = Module()
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(tmp_path / "module"), options=options)
    loaded = tf.saved_model.load(str(tmp_path / "module"))
    before = [np.array(weight) for weight in loaded.weights]
    x = _inputs() + 1.0
    np.testing.assert_allclose(loaded.train(x), module.train(x), rtol=1e-5, atol=1e-6)
    moved = [bool(np.any(b != w.numpy())) for b, w in zip(before, loaded.weights, strict=True)]
    assert moved == ["moving" in weight.name for weight in layer.weights]
    assert_all_close(loaded.weights, layer.weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "mode"),
    conformance.parameters(
        itertools.product(conformance.KINDS, ["sequence", "frame", "none"]),
        [("lstm", "sequence"), ("gru", "frame"), ("simple_rnn", "none")],
    ),
)
def test_a_step_model_of_a_layers_cell(kind, mode, tmp_path):
    """One frame at a time with the weights of a layer that was trained on whole sequences."""
    layer = conformance.find(f"{kind}-{mode}").layer(dtype="float32", synchronized=True)
    layer(keras.Input((None, FEATURES)))
    frame = keras.Input((FEATURES,))
    states = [keras.Input((UNITS,)) for _ in keras.tree.flatten(layer.state_size)]
    output, new = layer.cell(frame, states)
    model = keras.Model([frame, *states], [output, *keras.tree.flatten(new)])
    model.save(tmp_path / "step.keras")
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(BATCH, one.shape[-1])).astype("float32") for one in model.inputs]
    for again in (
        keras.models.load_model(tmp_path / "step.keras"),
        keras.models.clone_model(model),
    ):
        again.set_weights(model.get_weights())
        assert_all_close(again(inputs), model(inputs))
    folded = keras_bnrnn.fold_batch_norm(model)
    assert_all_close(folded(inputs), model(inputs), atol=1e-6)
    config = layer.get_config()
    assert config["normalization"] == (None if mode == "none" else mode) and config["synchronized"]


def test_the_cell_of_a_layer_that_counts_steps_is_not_called_alone():
    layer = keras_bnrnn.BatchNormLSTM(UNITS, normalization="frame", max_timesteps=TIME)
    layer.build((None, None, FEATURES))
    with pytest.raises(ValueError, match=r"counts the time steps.*make a BatchNormLSTMCell"):
        layer.cell(np.ones((BATCH, FEATURES), "float32"), 2 * [np.zeros((BATCH, UNITS), "float32")])


def test_a_normaliser_that_is_frozen_by_itself_stays_so(tmp_path):
    both = keras_bnrnn.Bidirectional(keras_bnrnn.BatchNormGRU(UNITS, return_sequences=True))
    cell = keras_bnrnn.BatchNormGRUCell(UNITS)
    layer = conformance.find("lstm-frame_recurrent_cell_steps").layer(dtype="float32")
    layers = [both, keras.layers.RNN(cell, return_sequences=True), layer]
    model = keras.Sequential([keras.Input((TIME, FEATURES)), *layers])
    cells = [both.forward_layer.cell, cell, layer.cell]
    for normalizer in (*(one.normalizer for one in cells), layer.cell.cell_normalizer):
        normalizer.trainable = False
    model.save(tmp_path / "it.keras")

    def trainable(model):
        return [weight.trainable for weight in model.weights]

    for again in (
        keras.models.clone_model(model),
        keras.models.load_model(tmp_path / "it.keras"),
        keras_bnrnn.fold_batch_norm(
            keras.Sequential([keras.Input((TIME, FEATURES)), layer]), False
        ),
    ):
        assert again.layers[-1].cell.frozen_normalizers == ["normalizer", "cell_normalizer"]
        assert trainable(again) == trainable(model)[-len(again.weights) :]


def test_an_exported_layer_takes_any_batch_and_length(tmp_path):
    """Unfolded: which of its loops have a turn depends on the length."""
    layer = keras_bnrnn.BatchNormLSTM(UNITS, return_sequences=True)
    model = keras.Sequential([keras.Input((None, FEATURES)), layer])
    model.export(tmp_path / "it", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "it")
    for time in (1, 4, 21):
        x = _inputs(time=time) if time > 3 else np.ones((BATCH, time, FEATURES), "float32")
        np.testing.assert_allclose(loaded.serve(x), model(x), rtol=0, atol=1e-6)

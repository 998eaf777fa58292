"""export.py: the SavedModel's numbers, in a process without keras_bnrnn."""

import importlib.util
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import export
import keras_bnrnn
import train_speech
from command_line import CommandError
from keras_bnrnn.data.speech.corpus import load_corpus
from keras_bnrnn.data.speech.features import LogMelFilterBank
from keras_bnrnn.data.speech.pipelines import speech_dataset

SMALL = ("--layers=2", "--units=6", "--batch_size=8", "--learning_rate=0.01", "--epochs=1")

SERVE = """
import numpy as np
import tensorflow as tf

signatures = tf.saved_model.load(sys.argv[1]).signatures
inputs = np.load(sys.argv[2])
results = {}
for name in ("serve", "serve_waveform"):
    kind = "features" if name == "serve" else "waveform"
    outputs = signatures[name](
        **{kind: tf.constant(inputs[kind]), "lengths": tf.constant(inputs[kind + "_lengths"])}
    )
    results.update({f"{name}_{key}": value.numpy() for key, value in outputs.items()})
np.savez(sys.argv[3], **results)
"""


@pytest.fixture(scope="module", params=["batch_norm", "baseline"])
def exported(request, tiny_corpus, tmp_path_factory, call_script_in_module):
    """A trained run and its SavedModel."""
    folder = tmp_path_factory.mktemp(request.param)
    flags = [f"--data_dir={tiny_corpus}", f"--output_dir={folder}/run", *SMALL]
    call_script_in_module(train_speech, *flags, f"--model={request.param}")
    call_script_in_module(export, f"--run_dir={folder}/run", f"--output_dir={folder}/exported")
    return folder


def test_equals_the_trained_model_without_the_package(exported, tiny_corpus, tmp_path, run_without):
    corpus = load_corpus(tiny_corpus)
    inputs, _, mask = next(iter(speech_dataset(corpus, "dev", 9)))
    features, lengths = inputs["features"], inputs["lengths"]
    assert len(set(lengths.numpy())) > 1
    rng = np.random.default_rng(0)
    waveform = (0.1 * rng.normal(size=(3, 4000))).astype("float32")
    waveform_lengths = np.array([4000, 2500, 3999], "int32")
    np.savez(
        tmp_path / "inputs.npz",
        # Whatever stands past the end must not count.
        features=np.where(mask[..., None], features, 50.0),
        features_lengths=lengths,
        waveform=waveform,
        waveform_lengths=waveform_lengths,
    )
    done = run_without(
        ["keras_bnrnn", "keras"],
        SERVE,
        exported / "exported",
        tmp_path / "inputs.npz",
        tmp_path / "outputs.npz",
    )
    assert done.returncode == 0, done.stderr
    outputs = np.load(tmp_path / "outputs.npz")

    model = keras.saving.load_model(exported / "run" / "best.keras", compile=False)
    expected = tf.nn.log_softmax(model(inputs, training=False)).numpy()
    live = mask.numpy()
    actual = outputs["serve_log_posteriors"]
    assert actual.shape == (*live.shape, corpus.num_states)
    np.testing.assert_allclose(actual[live], expected[live], atol=1e-5)
    np.testing.assert_allclose(np.exp(actual[live]).sum(-1), 1.0, atol=1e-5)

    front_end = LogMelFilterBank(sample_rate=8000, snip_edges=False)
    frames = outputs["serve_waveform_frames"]
    assert frames.tolist() == [front_end.num_frames(n) for n in waveform_lengths.tolist()]
    for row, (count, samples) in enumerate(zip(frames, waveform_lengths, strict=True)):
        alone = front_end(waveform[row : row + 1, :samples])
        alone = (alone - corpus.mean) / np.sqrt(corpus.variance)
        inputs = {"features": alone, "lengths": tf.constant([count])}
        expected = tf.nn.log_softmax(model(inputs, training=False)).numpy()[0]
        actual = outputs["serve_waveform_log_posteriors"][row, :count]
        # The filter bank's logarithms enlarge the rounding of other batch shapes.
        np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_description_travels_with_the_model(exported):
    description = json.loads((exported / "exported/assets/speech_model.json").read_text())
    assert [state["phone"] for state in description["states"]] == ["SIL", "AH", "AH", "T", "OW"]
    assert description["sample_rate"] == 8000
    assert description["signatures"] == ["serve", "features", "serve_waveform", "serve_audio"]


def test_export_refuses_what_is_there_already(call_script, exported):
    with pytest.raises(CommandError, match="exists already"):
        call_script(export, f"--run_dir={exported}/run", f"--output_dir={exported}/exported")


def test_export_of_a_folder_that_is_no_run(call_script, tmp_path):
    with pytest.raises(CommandError, match=r"no results\.json"):
        call_script(export, f"--run_dir={tmp_path}", f"--output_dir={tmp_path}/exported")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_run_of_half_precision_is_served_in_float32(
    precision, tiny_corpus, tmp_path, call_script, monkeypatch
):
    run = tmp_path / "run"
    flags = ["--layers=1", "--units=5", "--epochs=1", "--batch_size=4", "--model=batch_norm"]
    call_script(
        train_speech,
        *flags,
        f"--mixed_precision={precision}",
        f"--data_dir={tiny_corpus}",
        f"--output_dir={run}",
    )
    keras.mixed_precision.set_dtype_policy("float32")
    trained = keras.saving.load_model(run / "best.keras", compile=False)
    assert trained.get_layer("bidirectional_1").compute_dtype == precision
    formats = ["--formats=onnx"] if importlib.util.find_spec("tf2onnx") else []
    call_script(export, f"--run_dir={run}", f"--output_dir={tmp_path}/exported", *formats)
    features = np.random.default_rng(0).normal(size=(2, 7, 123)).astype("float32")
    served = tf.saved_model.load(tmp_path / "exported").signatures["serve"]
    lengths = tf.constant([7, 7])
    scores = served(features=tf.constant(features), lengths=lengths)["log_posteriors"]
    # The reference is computed in float32 too, so nothing of half precision may be left.
    exact = export.for_any_device(keras_bnrnn.fold_batch_norm(trained))
    inputs = {"features": features, "lengths": lengths}
    expected = tf.nn.log_softmax(exact(inputs))
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_allclose(scores, tf.nn.log_softmax(trained(inputs)), atol=0.1)
    half = tf.as_dtype(precision)
    functions = served.graph.as_graph_def().library.function
    nodes = [node for function in functions for node in function.node_def]
    assert not any(node.attr["T"].type == half.as_datatype_enum for node in nodes)


def test_a_model_exported_beside_a_gpu_is_served_without_one(monkeypatch):
    """Keras writes cuDNN's operations into the graph where it sees a GPU."""
    keras_rnn = importlib.import_module("keras.src.backend.tensorflow.rnn")
    monkeypatch.setattr(keras_rnn, "_is_gpu_available", lambda: True)

    def operations(model):
        call = tf.function(model, input_signature=[tf.TensorSpec([None, None, 3])], autograph=False)
        graph = call.get_concrete_function().graph
        inner = [function.graph for function in graph._functions.values()]
        return {operation.type for one in (graph, *inner) for operation in one.get_operations()}

    layers = [keras.layers.LSTM(4, return_sequences=True), keras.layers.GRU(4)]
    model = keras.Sequential([keras.Input((None, 3)), keras.layers.Bidirectional(layers[0])])
    model.add(layers[1])
    assert any("Cudnn" in name for name in operations(model))
    assert not any("Cudnn" in name for name in operations(export.for_any_device(model)))

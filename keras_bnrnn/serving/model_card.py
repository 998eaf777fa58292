"""MODEL_CARD.md: what a stranger has to know to serve an exported model."""

import json

from keras_bnrnn.serving.runtimes import MEANINGS


def model_card(title, results, data, endpoints, outputs, runtimes):
    """Writes the card.

    Args:
        title: a line.
        results: the run's `results.json`.
        data: a paragraph on what the model was trained on.
        endpoints: `{name: Endpoint}`.
        outputs: `{name: names of its outputs}`.
        runtimes: `{file name: keras.Model}` of the models for other runtimes.

    Returns:
        Markdown.
    """
    best = results["best"]
    lines = [
        f"# {title}",
        "",
        "A TensorFlow SavedModel. The batch normalisation that it was trained with is folded into "
        "plain kernels and biases; serving it needs TensorFlow, and neither Keras nor keras_bnrnn.",
        "",
        "## Training",
        "",
        data,
        "",
        f"Weights of epoch {best['epoch']}, the best by {results['criterion']}:",
        "",
        "| measure | value |",
        "|---|---|",
        *(f"| {name} | {value:.4g} |" for name, value in best.items() if name != "epoch"),
        "",
        "## Signatures",
        "",
        "```python",
        "import tensorflow as tf",
        *(
            ["import tensorflow_text  # before loading: the model has its operations"]
            if "score" in endpoints
            else []
        ),
        "",
        'model = tf.saved_model.load("THIS_FOLDER")',
        f'outputs = model.signatures["{next(iter(endpoints))}"](…)  # tensors, by name',
        "```",
        "",
        *_command_line_tool(endpoints),
    ]
    for name, endpoint in endpoints.items():
        lines += ["", f"### `{name}`", "", endpoint.purpose, "", "| | name | |", "|---|---|---|"]
        for kind, names in (
            ("input", [spec.name for spec in endpoint.inputs]),
            ("output", outputs[name]),
        ):
            lines += [f"| {kind} | `{one}` | {endpoint.meanings[one]} |" for one in names]
    if "step" in endpoints:
        lines += ["", "An output named like a state is that state after the call."]
    if runtimes:
        lines += ["", "## Other runtimes", "", "| file | |", "|---|---|"]
        lines += [f"| {file} | {MEANINGS[file]}: {shapes(one)} |" for file, one in runtimes.items()]
    lines += [
        "",
        "## Configuration",
        "",
        "```json",
        json.dumps({"config": results["config"], "versions": results["versions"]}, indent=1),
        "```",
        "",
    ]
    return "\n".join(lines)


def _command_line_tool(endpoints):
    """How to call a signature from a shell; the block runs as it stands in the model's folder."""
    if "score" in endpoints:
        return [
            "From a shell; `saved_model_cli` needs the tokenizer's operations before it reads the "
            "model:",
            "",
            "```sh",
            'saved_model_cli() { python -c "import tensorflow_text; from '
            'tensorflow.python.tools.saved_model_cli import main; main()" "$@"; }',
            "saved_model_cli show --dir . --all",
            *_runs("score", """--input_exprs 'sentences=["the first sentence", "another"]'"""),
            *_runs("next_token", """--input_exprs 'prefix=["the first"];k=5'"""),
            "```",
        ]
    dimension = endpoints["serve"].inputs[0].shape[-1]
    lines = [
        "From a shell:",
        "",
        "```sh",
        "saved_model_cli show --dir . --all",
        "python -c \"import numpy as np; np.save('features.npy', "
        f"np.ones([1, 50, {dimension}], 'float32'))\"",
        *_runs("serve", "--inputs features=features.npy --input_exprs 'lengths=[50]'"),
        "```",
    ]
    if "serve_audio" in endpoints:
        lines += [
            "",
            "and with `speech.wav` in that folder (an array of objects, since NumPy's own type for "
            "bytes drops zeros at the end):",
            "",
            "```sh",
            'python -c "import numpy as np; '
            "np.save('audio.npy', np.array([open('speech.wav', 'rb').read()], object))\"",
            *_runs("serve_audio", "--inputs audio=audio.npy"),
            "```",
        ]
    return lines


def _runs(signature, inputs):
    return [
        f"saved_model_cli run --dir . --tag_set serve --signature_def {signature} \\",
        f"    {inputs}",
    ]


def shapes(model):
    """The inputs of a `keras.Model` with their shapes."""
    return ", ".join(f"`{one.name}` {list(one.shape)}" for one in model.inputs)

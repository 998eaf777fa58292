"""MODEL_CARD.md: what a stranger has to know to serve an exported model."""

import json

FRAMES = 50  # of the examples
FOLDED = (
    "The batch normalisation that it was trained with is folded into plain kernels and biases; "
)


def model_card(
    title, training, configuration, unfolded, endpoints, outputs, runtimes, quantize=None
):
    """Writes the card.

    Args:
        title: a line.
        training: Markdown on what the model was trained on and how good it is, or `None`.
        configuration: JSON values, or `None`.
        unfolded: why layers keep their normalisation, by name.
        endpoints: `{name: Endpoint}`.
        outputs: `{name: names of its outputs}`.
        runtimes: `{file name: (keras.Model, what it takes and returns)}`.
        quantize: the weights of these files, if they are not float32.

    Returns:
        Markdown.
    """
    lines = [
        f"# {title}",
        "",
        f"A TensorFlow SavedModel. {'' if unfolded else FOLDED}"
        f"{'S' if unfolded else 's'}erving it needs TensorFlow, and neither Keras nor keras_bnrnn.",
        "",
    ]
    if unfolded:
        lines += ["Some normalisation is computed as it was trained, not folded into kernels:", ""]
        lines += [*(f"- {name}: {reason}" for name, reason in unfolded.items()), ""]
    if training:
        lines += ["## Training", "", training, ""]
    lines += [
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
    lines += ["", f"`{next(iter(endpoints))}` is also there as `serving_default`."]
    if "step" in endpoints:
        lines += ["", "An output named like a state is that state after the call."]
    if runtimes:
        lines += ["", "## Other runtimes", ""]
        if quantize is not None:
            lines += [f"Their weights are quantised ({quantize}).", ""]
        if any(file.endswith(".tflite") for file in runtimes):
            lines += [
                "Call a `.tflite` file through its signature, by names. Its outputs are "
                "`output_0`, `output_1`, … in the order below.",
                "",
            ]
        lines += ["| file | |", "|---|---|"]
        lines += [
            f"| {file} | {meaning}: {shapes(model)} |"
            for file, (model, meaning) in runtimes.items()
        ]
    if configuration is not None:
        document = json.dumps(configuration, indent=1)
        lines += ["", "## Configuration", "", "```json", document, "```"]
    return "\n".join([*lines, ""])


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
    arrays, numbers = [], []
    for spec in endpoints["serve"].inputs:
        if spec.shape.rank > 1:
            arrays.append(spec)
        else:
            numbers.append(f"{spec.name}=[{FRAMES}]")
    saved = "; ".join(
        f"np.save('{spec.name}.npy', np.ones({example_shape(spec)}, '{spec.dtype.name}'))"
        for spec in arrays
    )
    given = f"--inputs '{';'.join(f'{spec.name}={spec.name}.npy' for spec in arrays)}'"
    if numbers:
        given += f" --input_exprs '{';'.join(numbers)}'"
    lines = [
        "From a shell:",
        "",
        "```sh",
        "saved_model_cli show --dir . --all",
        f'python -c "import numpy as np; {saved}"',
        *_runs("serve", given),
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


def example_shape(spec):
    """The shape of an example: a row, of `FRAMES` frames where their number is free."""
    return [1, *(FRAMES if size is None else size for size in spec.shape[1:])]


def shapes(model):
    """The inputs of a `keras.Model` with their shapes."""
    return ", ".join(f"`{one.name}` {list(one.shape)}" for one in model.inputs)

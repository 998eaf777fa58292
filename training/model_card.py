"""MODEL_CARD.md: what a stranger has to know to serve an exported model."""

import json

from runtimes import MEANINGS


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
        *(["import tensorflow_text  # for strings"] if "score" in endpoints else []),
        "",
        'model = tf.saved_model.load("THIS_FOLDER")',
        f'outputs = model.signatures["{next(iter(endpoints))}"](…)  # tensors, by name',
        "```",
        "",
        *_command_line_tool("score" in endpoints),
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


def _command_line_tool(strings):
    if not strings:
        return [
            "`saved_model_cli show --dir THIS_FOLDER --all` lists them too, and `saved_model_cli "
            "run` calls them with arrays from files (bytes of WAV files as an array with "
            "`dtype=object`: NumPy's own type for bytes drops zeros at the end)."
        ]
    return [
        "`saved_model_cli` (`show --dir THIS_FOLDER --all`, `run …`) needs the tokenizer's "
        "operations before it reads the model:",
        "",
        "```sh",
        'python -c "import tensorflow_text; from tensorflow.python.tools.saved_model_cli import '
        'main; main()" show --dir THIS_FOLDER --all',
        "```",
    ]


def shapes(model):
    """The inputs of a `keras.Model` with their shapes."""
    return ", ".join(f"`{one.name}` {list(one.shape)}" for one in model.inputs)

"""MODEL_CARD.md: what a stranger has to know to serve an exported model."""

import json


def model_card(title, results, data, endpoints, outputs):
    """Writes the card.

    Args:
        title: a line.
        results: the run's `results.json`.
        data: a paragraph on what the model was trained on.
        endpoints: `{name: Endpoint}`.
        outputs: `{name: names of its outputs}`.

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
        "`saved_model_cli show --dir THIS_FOLDER --all` lists them too.",
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

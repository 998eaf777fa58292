"""TensorFlow Serving's REST conventions, as its page "RESTful API" has them, for signatures."""

import base64
import json

import numpy as np
import tensorflow as tf


def predict(signatures, body):
    """What a server answers to `POST /v1/models/NAME:predict`.

    Args:
        signatures: of a loaded SavedModel.
        body: JSON text: `instances`, a value or an object for each row, or `inputs`, whole tensors;
            `signature_name` if it is not `serving_default`.

    Returns:
        JSON text: `predictions` for each row, or `outputs`; without a name if there is one alone.
        Or an `error`.
    """
    request = json.loads(body)
    signature = signatures[request.get("signature_name", "serving_default")]
    specs = signature.structured_input_signature[1]
    assert len({"instances", "inputs"} & set(request)) == 1
    given = request.get("inputs", request.get("instances"))
    if "instances" in request:
        given = columns(given)
    if not isinstance(given, dict) or set(given) == {"b64"}:
        [name] = specs
        given = {name: given}
    assert set(given) == set(specs)
    tensors = {name: tf.constant(binary(given[name]), spec.dtype) for name, spec in specs.items()}
    try:
        outputs = signature(**tensors)
    except tf.errors.InvalidArgumentError as error:
        return json.dumps({"error": error.message})
    found = {name: value.numpy() for name, value in outputs.items()}
    if "instances" not in request:
        values = {name: plain(value) for name, value in found.items()}
        return json.dumps({"outputs": alone(values)})
    rows = len(request["instances"])
    assert all(len(value) == rows for value in found.values())
    rows = [alone({name: plain(value[k]) for name, value in found.items()}) for k in range(rows)]
    return json.dumps({"predictions": rows})


def columns(instances):
    """The rows' values by name, or without one."""
    if not isinstance(instances[0], dict) or set(instances[0]) == {"b64"}:
        return instances
    assert all(one.keys() == instances[0].keys() for one in instances)
    return {name: [one[name] for one in instances] for name in instances[0]}


def binary(value):
    """The value, `{"b64": …}` decoded."""
    if isinstance(value, list):
        return [binary(one) for one in value]
    return base64.b64decode(value["b64"], validate=True) if isinstance(value, dict) else value


def plain(value):
    """An array as JSON's values; strings are UTF-8."""
    value = np.asarray(value)
    return np.char.decode(value.astype(bytes)).tolist() if value.dtype == object else value.tolist()


def alone(values):
    return next(iter(values.values())) if len(values) == 1 else values

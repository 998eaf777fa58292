"""Requests as others' programs send them: TensorFlow Serving's JSON, threads, and many of them."""

import base64
import concurrent.futures
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from rest import predict
from untrained import WORDS, noise, wav

ROWS = 2


@pytest.fixture(params=["speech", "language"])
def exported(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def given(tmp_path):
    """JSON values for the inputs of all signatures but states, `ROWS` of each."""
    audio = [wav(noise(4000 - 500 * seed, seed), tmp_path) for seed in range(ROWS)]
    return {
        "features": np.random.default_rng(0).normal(size=(ROWS, 5, 123)).tolist(),
        "lengths": [5, 3],
        "waveform": [noise(4000, seed).tolist() for seed in range(ROWS)],
        "audio": [{"b64": base64.b64encode(one).decode()} for one in audio],
        "sentences": ["the statement", "an error ünbekannt"],
        "prefix": ["the", ""],
        "k": [3, 2],
        "tokens": [[1, 2, 3], [4, 5, 6]],
    }


def inputs_of(signature, given):
    return {
        name: given.get(name, np.full((ROWS, spec.shape[-1] or 1), 0.25).tolist())
        for name, spec in signature.structured_input_signature[1].items()
    }


def tensors(signature, inputs):
    """JSON values as a call from Python has them."""
    return {
        name: tf.constant(
            [base64.b64decode(one["b64"]) for one in inputs[name]]
            if name == "audio"
            else inputs[name],
            spec.dtype,
        )
        for name, spec in signature.structured_input_signature[1].items()
    }


def test_every_signature_takes_rows_and_columns(exported, given):
    for name, signature in exported.signatures.items():
        inputs = inputs_of(signature, given)
        request = {} if name == "serving_default" else {"signature_name": name}
        rows = [dict(zip(inputs, row, strict=True)) for row in zip(*inputs.values(), strict=True)]
        by_row, by_column = (
            json.loads(predict(exported.signatures, json.dumps(request | body)))
            for body in ({"instances": rows}, {"inputs": inputs})
        )
        columns = by_column["outputs"]
        wanted = signature(**tensors(signature, inputs))
        if len(wanted) == 1:
            [only] = wanted
            columns = {only: columns}
            by_row["predictions"] = [{only: one} for one in by_row["predictions"]]
        assert set(columns) == set(wanted)
        for key, value in wanted.items():
            texts = value.dtype == tf.string
            expected = np.char.decode(value.numpy().astype(bytes)) if texts else value.numpy()
            np.testing.assert_array_equal(columns[key], expected)
            np.testing.assert_array_equal([row[key] for row in by_row["predictions"]], expected)


def test_a_single_input_needs_no_name(request, given):
    for kind, name, field in (
        ("speech", "serve_audio", "audio"),
        ("language", "score", "sentences"),
    ):
        signatures = request.getfixturevalue(kind).signatures
        for form in ("instances", "inputs"):
            bare, named = (
                predict(signatures, json.dumps({"signature_name": name, form: value}))
                for value in (
                    given[field],
                    {field: given[field]}
                    if form == "inputs"
                    else [{field: one} for one in given[field]],
                )
            )
            assert bare == named


def test_one_number_of_words_for_all_rows(language, given):
    body = {"signature_name": "next_token", "inputs": {"prefix": given["prefix"], "k": 3}}
    words = json.loads(predict(language.signatures, json.dumps(body)))["outputs"]["words"]
    assert np.shape(words) == (2, 3) and set(np.ravel(words)) <= set(WORDS)


def test_eight_threads_get_what_one_gets(exported, given):
    calls = {
        name: (signature, tensors(signature, inputs_of(signature, given)))
        for name, signature in exported.signatures.items()
    }

    def results(name):
        signature, inputs = calls[name]
        return {key: value.numpy() for key, value in signature(**inputs).items()}

    expected = {name: results(name) for name in calls}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        names = 8 * list(calls)
        for name, found in zip(names, pool.map(results, names), strict=True):
            for key, value in expected[name].items():
                np.testing.assert_array_equal(found[key], value)


@pytest.mark.slow
def test_five_thousand_calls_leave_memory_as_it_was(exported, given):
    signature = exported.signatures["serving_default"]
    inputs = tensors(signature, inputs_of(signature, given))
    first = {key: value.numpy() for key, value in signature(**inputs).items()}
    for call in range(5000):
        if call == 1000:
            before = resident_megabytes()
        outputs = signature(**inputs)
    assert resident_megabytes() < before + 10
    for key, value in first.items():
        np.testing.assert_array_equal(outputs[key], value)


def resident_megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def test_texts_of_strangers(language):
    texts = ["", "xyzzy plugh", "word " * 5000, "日本 語 Ελλάδα 🙂", "the\n\tan\u3000error", "\0"]
    outputs = language.signatures["score"](sentences=tf.constant(texts))
    assert outputs["tokens"].numpy()[[0, 1, 2, 4]].tolist() == [1, 3, 5001, 4]
    for key in ("log_probability", "perplexity"):
        assert np.isfinite(outputs[key]).all()
    others = language.signatures["score"](sentences=tf.constant(["", "qwerty asdf"]))
    for row in range(2):
        found, expected = outputs["log_probability"][row], others["log_probability"][row]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    best = language.signatures["next_token"](prefix=tf.constant(texts), k=tf.constant(10**6))
    assert best["words"].shape == (len(texts), len(WORDS))
    np.testing.assert_allclose(tf.reduce_sum(best["probabilities"], 1), 1.0, rtol=1e-5)
    assert {one.decode() for one in best["words"][3].numpy()} == set(WORDS)

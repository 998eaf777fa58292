"""What editors and type checkers are told of layers and cells is what the classes take."""

import ast
import inspect
from pathlib import Path

import keras
import pytest

import keras_bnrnn.data
import stubs

CLASSES = [(module, cls) for module, classes in stubs.MODULES.items() for cls in classes]
PUBLIC = [
    keras_bnrnn.Bidirectional,
    keras_bnrnn.copy_weights,
    keras_bnrnn.fold_batch_norm,
    keras_bnrnn.recalibrate,
    keras_bnrnn.fit.fit,
    keras_bnrnn.serving.export,
    keras_bnrnn.losses.FrameMeanCrossEntropy,
    keras_bnrnn.metrics.FrameCrossEntropy,
    keras_bnrnn.metrics.FrameErrorRate,
    keras_bnrnn.metrics.Perplexity,
    *(
        getattr(keras_bnrnn.data, name)
        for name in keras_bnrnn.data.__all__
        if not name.endswith("Error")
    ),
]
ADVICE = "the signatures have changed: run `python tests/stubs.py`"


def stub_of(module):
    return Path(module.__file__).with_suffix(".pyi").read_text(encoding="utf-8")


def arguments(function):
    """`[(name, kind, default), …]`."""
    parameters = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]


def stubbed_init(cls, module):
    """The `__init__` that the stub has for a class, without its annotations."""
    classes = {getattr(node, "name", ""): node for node in ast.parse(stub_of(module)).body}
    docstring, init = classes[cls.__name__].body
    assert inspect.cleandoc(docstring.value.value) == inspect.getdoc(cls), ADVICE
    own = getattr(cls, "cell_class", cls).normalization_parameters()
    assert [name for name in own if f"{name}: " not in cls.__doc__.replace(",", ":")] == []
    for argument in ast.walk(init):
        if isinstance(argument, ast.arg) and argument.arg != "self":
            assert argument.annotation, f"{argument.arg} has no type"
            argument.annotation = None
    namespace = {}
    exec(ast.unparse(init), namespace)
    return namespace["__init__"]


@pytest.mark.parametrize("module,cls", CLASSES, ids=lambda value: value.__name__)
def test_the_stub_has_the_docstring_and_the_arguments_of_the_class(module, cls):
    assert arguments(stubbed_init(cls, module))[1:] == arguments(cls), ADVICE


@pytest.mark.parametrize("module", stubs.MODULES, ids=lambda module: module.__name__)
def test_the_stub_is_as_written(module):
    assert stub_of(module) == stubs.stub(module), ADVICE


def test_bidirectional_takes_what_its_namesake_takes():
    assert arguments(keras_bnrnn.Bidirectional) == arguments(keras.layers.Bidirectional)


@pytest.mark.parametrize("function", PUBLIC, ids=lambda value: value.__name__)
def test_public_functions_have_types(function):
    parameters = inspect.signature(function).parameters.values()
    untyped = [
        parameter.name
        for parameter in parameters
        if parameter.annotation is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    assert untyped == []
    if inspect.isfunction(function):
        assert "return" in function.__annotations__

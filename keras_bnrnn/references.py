"""Which layers and variables a layer reaches: Keras knows of those in attributes only."""

import collections
import contextlib
import dis
import sys
import types
from collections.abc import Collection, Iterator, Mapping

import keras

from keras_bnrnn.plain_weights import is_ours


def reached_from(
    layer: keras.layers.Layer, leave: Collection[str]
) -> Iterator[tuple[str, keras.layers.Layer | keras.Variable]]:
    """What a layer's `call` and its attributes refer to, be it the layer's own or not.

    Args:
        layer: A layer or model.
        leave: Names of attributes to leave out.

    Returns:
        The name of an attribute and a layer or variable that it reaches: alone, in containers and
        objects of classes of a user's, and in the code, closures, defaults and globals of
        functions, methods, partials, properties and `tf.function`s.
    """
    methods = {}
    for base in reversed(type(layer).__mro__):
        if not _is_library(base):
            methods |= vars(base)
    for name, value in {"call": methods.get("call"), **vars(layer)}.items():
        if name not in leave:
            yield from ((name, part) for part in _reached(value, methods))


def _reached(value, methods):
    """The layers and variables that a value refers to, as a function or an object of a user's.

    Args:
        value: Anything.
        methods: Of the class of `self`, by name, for functions that use them.
    """
    seen, waiting = {}, [value]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, (type, types.ModuleType)):
            continue
        seen[id(one)] = one
        one = getattr(one, "python_function", one)  # of a `tf.function`
        if isinstance(one, (keras.layers.Layer, keras.Variable)):
            yield one
        elif isinstance(one, types.FunctionType):
            waiting += [one.__defaults__, one.__kwdefaults__]
            for cell in one.__closure__ or ():
                with contextlib.suppress(ValueError):  # It is empty.
                    waiting.append(cell.cell_contents)
            for loads, name in _names(one.__code__):
                waiting.append((one.__globals__ if loads == "LOAD_GLOBAL" else methods).get(name))
        elif isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, (list, tuple, set, frozenset, collections.deque)):
            waiting.extend(one)
        else:
            # A method, a property, a partial, … as far as it is of this kind.
            waiting += [getattr(one, name, None) for name in _HOLDING]
            if not _is_library(type(one)):
                waiting += getattr(one, "__dict__", {}).values()


# Where methods, partials, properties and decorators of Python have what they call.
_HOLDING = ("__self__", "__func__", "__wrapped__", "func", "args", "keywords", "fget")


def _names(code):
    """The global names and those of attributes that a function's code loads."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD"):
            yield instruction.opname, instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


_LIBRARIES = {"keras", "tensorflow", "numpy", *sys.stdlib_module_names} - {"__main__"}
# What Keras keeps of these is none of what a layer computes.
_APART = (keras.Metric, keras.Loss, keras.Optimizer)


def _is_library(cls):
    """Whether a class is none of a user's."""
    return cls.__module__.partition(".")[0] in _LIBRARIES or is_ours(cls) or issubclass(cls, _APART)

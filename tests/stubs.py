"""Writes the stubs of layers and cells: `python tests/stubs.py`.

Editors and type checkers run no code, so they cannot see a signature that is made from the one in
`keras.layers`, nor a docstring that is put together. The stubs spell them out;
`test_signatures.py` fails when the two differ.
"""

import inspect
import json
import re
import textwrap
from pathlib import Path

import keras_bnrnn
import keras_bnrnn.cells
import keras_bnrnn.layers

MODULES = {
    keras_bnrnn.cells: [
        keras_bnrnn.BatchNormSimpleRNNCell,
        keras_bnrnn.BatchNormLSTMCell,
        keras_bnrnn.BatchNormGRUCell,
    ],
    keras_bnrnn.layers: [
        keras_bnrnn.BatchNormSimpleRNN,
        keras_bnrnn.BatchNormLSTM,
        keras_bnrnn.BatchNormGRU,
    ],
}
HEADS = {
    keras_bnrnn.cells: """\
# Written by tests/stubs.py from the signatures and docstrings at run time.

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import keras

_Activation: TypeAlias = str | dict[str, Any] | Callable[..., Any] | None
_Initializer: TypeAlias = (
    str | dict[str, Any] | keras.initializers.Initializer | Callable[..., Any] | None
)
_Regularizer: TypeAlias = (
    str | dict[str, Any] | keras.regularizers.Regularizer | Callable[..., Any] | None
)
_Constraint: TypeAlias = (
    str | dict[str, Any] | keras.constraints.Constraint | Callable[..., Any] | None
)
""",
    keras_bnrnn.layers: """\
# Written by tests/stubs.py from the signatures and docstrings at run time.

from typing import Any, Literal

import keras

from keras_bnrnn.cells import _Activation, _Constraint, _Initializer, _Regularizer
""",
}
# Patterns of arguments' names; what matches none has the type of its default.
TYPES = {
    r"units": "int",
    r"(recurrent_)?activation": "_Activation",
    r".*_initializer": "_Initializer",
    r".*_regularizer": "_Regularizer",
    r".*_constraint": "_Constraint",
    r"seed": "int | keras.random.SeedGenerator | None",
    r"use_cudnn": 'Literal["auto"] | bool',
    r"max_timesteps": "int | None",
    r"renorm_clipping": "dict[str, float] | None",
}


def stub(module):
    """The text of a module's stub."""
    ancestors = [base for cls in MODULES[module] for base in reversed(cls.__mro__[1:])]
    shared = [
        f"{_class_line(base, module)}\n    def __getattr__(self, name: str) -> Any: ...\n"
        for base in dict.fromkeys(ancestors)
        if _is_of(base, module)
    ]
    public = [_class(cls, module) for cls in MODULES[module]]
    return "\n".join([HEADS[module], *shared, *public, "def __getattr__(name: str) -> Any: ...\n"])


def _is_of(cls, module):
    return cls.__module__ == module.__name__


def _class_line(cls, module):
    names = [
        base.__name__ if _is_of(base, module) else f"keras.layers.{base.__name__}"
        for base in cls.__bases__
        if base is not object
    ]
    return f"class {cls.__name__}({', '.join(names)}):" if names else f"class {cls.__name__}:"


def _class(cls, module):
    docstring = textwrap.indent(f'"""{cls.__doc__}"""\n', " " * 4)
    lines = [_class_line(cls, module), docstring, "    def __init__(", "        self,"]
    keyword_only = False
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            lines.append("        *,")
            keyword_only = True
        lines.append(f"        {_argument(parameter, module)},")
    return "\n".join([*lines, "    ) -> None: ...\n"])


def _argument(parameter, module):
    if parameter.kind is parameter.VAR_KEYWORD:
        return f"**{parameter.name}: Any"
    argument = f"{parameter.name}: {_type(parameter, module)}"
    if parameter.default is parameter.empty:
        return argument
    default = parameter.default
    return f"{argument} = {json.dumps(default) if isinstance(default, str) else repr(default)}"


def _type(parameter, module):
    if parameter.name == "normalization":
        modes = "" if module is keras_bnrnn.cells else '"sequence", '
        return f'Literal[{modes}"frame"] | None'
    for pattern, name in TYPES.items():
        if re.fullmatch(pattern, parameter.name):
            return name
    if parameter.default in (parameter.empty, None):
        raise ValueError(f"give the type of {parameter.name!r} in TYPES")
    return type(parameter.default).__name__


if __name__ == "__main__":
    for module in MODULES:
        Path(module.__file__).with_suffix(".pyi").write_text(stub(module), encoding="utf-8")

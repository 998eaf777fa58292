"""Griffe extension: docstrings as the stubs have them, with sections that Griffe knows."""

import re
import textwrap

from griffe import Extension


def with_known_sections(docstring):
    """Call arguments and the example, which stands last, as sections; each argument by itself."""
    text = docstring.replace("\nCall arguments:\n", "\nOther Parameters: Call arguments:\n")
    # "activation, dropout, …: every other …" is what the signature calls **kwargs.
    text = re.sub(r"^    \w+(, \w+)+, …:", "    **kwargs:", text, flags=re.M)
    text = re.sub(r"^    (\w+(?:, \w+)+): (.*(?:\n     .*)*)", _one_by_one, text, flags=re.M)
    # Without a type before a colon Griffe would take the words up to the first one for it.
    text = re.sub(r"^(Returns:\n {4})", r"\1: ", text, flags=re.M)
    text, heading, example = text.partition("\nExample:\n\n")
    if not heading:
        return text
    return f"{text}\nExamples: Example:\n{textwrap.indent(example, '    ')}"


def _one_by_one(match):
    names, meaning = match.groups()
    return "\n".join(f"    {name}: {meaning}" for name in names.split(", "))


class Docstrings(Extension):
    """Docstrings of layers and cells are put together at run time; the stubs hold the result."""

    def __init__(self):
        self.of_stubs = {}

    def on_class_instance(self, *, cls, agent, **kwargs):
        if agent.filepath.suffix == ".pyi":
            self.of_stubs[cls.path] = cls.docstring

    def on_object(self, *, obj, **kwargs):
        obj.docstring = self.of_stubs.get(obj.path) or obj.docstring
        if obj.docstring:
            obj.docstring.value = with_known_sections(obj.docstring.value)

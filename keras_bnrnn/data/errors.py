"""What can be wrong with speech data, in two sizes.

`CorpusError` ends the command: nothing sensible can be done without the caller's help.
`UtteranceError` costs one utterance, which is counted and listed with its reason.
"""


class CorpusError(ValueError):
    """The input as a whole, or a prepared corpus, cannot be used; the message says what to do."""


class UtteranceError(ValueError):
    """One utterance cannot be used; the message is the reason in `failures.tsv`."""


class PipeError(CorpusError):
    """An entry is a command to run, and nobody allowed that."""


def missing_extra(package, purpose):
    """The error for an optional package that is not installed.

    Args:
        package: name of the distribution that is missing.
        purpose: what it was wanted for, e.g. `"reading audio"`.

    Returns:
        A `CorpusError` that names the extra to install.
    """
    return CorpusError(
        f"{purpose} needs the package {package!r}: install keras-bnrnn[speech] "
        '(pip install "keras-bnrnn[speech]")'
    )

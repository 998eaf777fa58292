"""What can be wrong with speech data, in two sizes.

`CorpusError` ends the command: nothing sensible can be done without the caller's help.
`UtteranceError` costs one utterance, which is counted and listed with its reason.
"""

from collections.abc import Callable
from typing import Any


class CorpusError(ValueError):
    """The input as a whole, or a prepared corpus, cannot be used; the message says what to do."""


class UtteranceError(ValueError):
    """One utterance cannot be used; the message is the reason in `failures.tsv`."""


class PipeError(CorpusError):
    """An entry is a command to run, and nobody allowed that."""


def attempt(function: Callable, *arguments: Any) -> Any:
    """What a function of one utterance returns, or an UtteranceError, whatever went wrong.

    Raises:
        CorpusError: as the function did.
    """
    try:
        return function(*arguments)
    except UtteranceError as error:
        return error
    except CorpusError:
        raise
    except Exception as error:  # One file out of millions, of a kind that nobody foresaw.
        return UtteranceError(f"{error} ({type(error).__name__})")


def missing_extra(package, purpose, extra="speech"):
    """The error for an optional package that is not installed.

    Args:
        package: name of the distribution that is missing.
        purpose: what it was wanted for, e.g. `"reading audio"`.
        extra: of this package, which brings it.

    Returns:
        A `CorpusError` that names the extra to install.
    """
    return CorpusError(
        f"{purpose} needs the package {package!r}: install keras-bnrnn[{extra}] "
        f'(pip install "keras-bnrnn[{extra}]")'
    )

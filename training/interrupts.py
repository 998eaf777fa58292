"""No traceback for Ctrl-C while there is nothing to save. Imported before all that takes time."""

import sys

INTERRUPTED = "interrupted: the same command continues"


def explain_interrupts(kind, error, traceback, others=sys.excepthook):
    """Python's last resort."""
    if issubclass(kind, KeyboardInterrupt):
        print(INTERRUPTED, file=sys.stderr)
    else:
        others(kind, error, traceback)


sys.excepthook = explain_interrupts

"""What can end a training run before its last epoch."""


class FitError(ValueError):
    """Something the caller can put right; the message says what to do."""


class Stopped(Exception):
    """The run was told to stop, and has saved what it needs to go on."""

"""The errors that end a job with one line and no traceback."""


class InputError(ValueError):
    """A bad option, file or weight; the message names the thing, the reason and the way out. Exit code 2."""


class StoppedError(Exception):
    """A job that could begin and can't go on; what it has written is whole, and the message says what to do. Exit code 1."""

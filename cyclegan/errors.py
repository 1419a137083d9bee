"""The one error that is the user's to mend."""


class InputError(ValueError):
    """An option, file or weight can't be used. The message is one line: what, why, and what to do. Jobs exit with 2 on it."""

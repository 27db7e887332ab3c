"""The errors that a command reports in one line and without a traceback."""


class UserError(ValueError):
    """An input, option or file that cannot be used; a command answers with exit status 2."""


class RunError(RuntimeError):
    """Work that could not go on, a full disk or a loss that is not finite; a command answers with exit status 1."""

"""What the user can mend, told apart from what is a bug: commands print the first as one line."""


class UserError(Exception):
    """Something given cannot be used or done; the message says what came, what was expected and what to do."""


class InvalidInput(UserError, ValueError):
    """Options, data or files do not fit together, or make no sense."""


class MissingFile(UserError, FileNotFoundError):
    """There is no such file or folder."""

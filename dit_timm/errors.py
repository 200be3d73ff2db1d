"""What a user can mend, told apart from what is a bug: commands print the first as one line, see `commands.message_of`.

Each class is also one of Python's own, which a caller of the library may expect.
"""


class UserError(Exception):
    """Something given cannot be used or done; the message says what came, what was expected and what to do."""


class InvalidInput(UserError, ValueError):
    """Options, data or files do not fit together, or make no sense."""


class Unavailable(UserError, OSError):
    """A file, a disk or a server does not give or take what it is asked for."""


class MissingFile(Unavailable, FileNotFoundError):
    """There is no such file or folder."""


class MissingPackage(UserError, ImportError):
    """An option needs a package that is not installed."""


class Diverged(UserError, FloatingPointError):
    """Training has made numbers that are none."""

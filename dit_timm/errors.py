"""Errors that a user can mend: commands print them as one line, see `message_of`, and all others with a traceback.

Each class is also one of Python's own, which a caller of the library may expect.
"""


class UserError(Exception):
    """Something given cannot be used or done; the message says what came, what was expected and what to do."""


class InvalidInputError(UserError, ValueError):
    """Options, data or files do not fit together, or make no sense."""


class UnavailableError(UserError, OSError):
    """A file, a disk or a server does not give or take what it is asked for."""


class MissingFileError(UnavailableError, FileNotFoundError):
    """There is no such file or folder."""


class DamagedFileError(UserError):
    """A file does not hold what was once written to it, or is no file of its kind."""


class MissingPackageError(UserError, ImportError):
    """An option needs a package that is not installed."""


class DivergedError(UserError, FloatingPointError):
    """The loss is not finite."""


def message_of(error: Exception) -> str:
    """The line that a command prints of an error and ends with; what is a bug is raised again, with its traceback.

    Args:
        error: A `UserError`; or an OSError, of which only the system's own are printed, which have a number: no
            space, no permission, no such file.
    """
    if isinstance(error, OSError) and not isinstance(error, UserError) and error.errno is None:
        raise error
    text = str(error).strip()
    # torch puts a traceback around an error from a process that loads data.
    return text.splitlines()[-1].partition(': ')[2] if text.startswith('Caught ') else text

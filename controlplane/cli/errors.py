"""How a command ends. Belongs here: exit statuses and the two failures that carry them."""

OK = 0
FAILED = 1
USAGE = 2
CANNOT_SAY = 125
"""Of a check that can say nothing about a revision, as `git bisect` has it."""


def reason_of(error: Exception) -> str:
    """Of a file that cannot be read, without the number and the path that Python puts around it."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class CommandFailed(Exception):
    """The command was understood and could not be done; the text is all that a person sees."""

    exit_status = FAILED


class UsageError(Exception):
    """The command cannot be meant as written; the text says what would be right."""

    exit_status = USAGE

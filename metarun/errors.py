"""The one exception that is meant for the user. It stands alone: the command line needs it without torch."""


class UserError(Exception):
    """A mistake the user can mend: one line that names the key, its value and the remedy."""


def one_line(error: BaseException | str) -> str:
    """What an error says, without line breaks; the name of its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__

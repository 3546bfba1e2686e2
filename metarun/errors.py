"""The one exception that is meant for the user. It stands alone: the command line needs it without torch."""


class UserError(Exception):
    """A mistake the user can mend: one line that names the key, its value and the remedy."""

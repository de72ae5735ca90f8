"""The one kind of error that a person who runs a verb can mend."""


class UserError(ValueError):
    """A mistake in a config, the data or the command line; the message says in one line what to change."""

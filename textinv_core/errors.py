"""Whose mistake it is."""


class UserError(ValueError):
    """What the person at the graph can mend; the message says what is wrong, with the values, and what to do.

    Everything else that is raised is a mistake of ours, and keeps its traceback.
    """

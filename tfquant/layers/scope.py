"""`Scope`: a setting that holds while Python runs or traces a model, thread by thread."""

import threading
from typing import ClassVar

_entered = threading.local()


class Scope:
    """Inside it, code further down finds it by `current`, like `keras.StatelessScope`.

    Scopes of one kind nest: the innermost counts, and what was there before comes back.

    Attributes:
        kind: What the scope is one of; a subclass of one kind takes its place.
    """

    kind: ClassVar[str]

    def __enter__(self):
        self._outer = self.current()
        setattr(_entered, self.kind, self)
        return self

    def __exit__(self, *error):
        setattr(_entered, self.kind, self._outer)

    @classmethod
    def current(cls):
        """Returns the scope of this kind that this thread is in, or `None`."""
        return getattr(_entered, cls.kind, None)

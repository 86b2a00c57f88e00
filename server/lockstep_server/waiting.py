"""How long a training has waited for workers since it last came forward."""


class Waiting:
    """Adds up the waits since the last progress, so that workers that come and go cannot put off the end for ever."""

    def __init__(self, now: float) -> None:
        self._since_s: float | None = now
        self._before_s = 0.0  # waited before the present wait

    @property
    def waits(self) -> bool:
        """Whether it waits now."""
        return self._since_s is not None

    def begin(self, now: float) -> None:
        """Wait from now on."""
        self._since_s = now if self._since_s is None else self._since_s

    def end(self, now: float) -> None:
        """Wait no more."""
        if self._since_s is not None:
            self._before_s += now - self._since_s
            self._since_s = None

    def progress(self) -> None:
        """Forget the waits before now."""
        self._before_s = 0.0

    def stop(self) -> None:
        """Nothing is waited for any more."""
        self._since_s = None

    def spent_s(self, now: float) -> float:
        """Return the seconds waited, if it waits now."""
        return 0.0 if self._since_s is None else self._before_s + now - self._since_s

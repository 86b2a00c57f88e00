"""How fast a training goes, lately."""


class Speed:
    """Rows and steps a second over the last few looks."""

    def __init__(self, now: float) -> None:
        self.rows_per_s = 0.0
        self.steps_per_s = 0.0
        self._rows = 0
        self._steps = 0
        self._looks = [(now, 0, 0)]

    def step(self, num_rows: int) -> None:
        """Count a step."""
        self._rows += num_rows
        self._steps += 1

    def look(self, now: float) -> None:
        """Measure from the oldest look that is kept to now."""
        then, rows, steps = self._looks[0]
        if now > then:
            self.rows_per_s = (self._rows - rows) / (now - then)
            self.steps_per_s = (self._steps - steps) / (now - then)
        self._looks = [*self._looks[-7:], (now, self._rows, self._steps)]

"""Where training stands: a bar on a terminal, plain lines elsewhere (a log file wants no carriage returns)."""

import sys
import time

from tqdm import tqdm


def say(message: str) -> None:
    """A line to standard error: standard output is for results."""
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


class Progress:
    """A training run's way to its last step; a context manager."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._first: tuple[int, float] | None = None  # the first step shown, and when
        self._bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.close()

    def show(self, step: int, loss: float, rate: float) -> None:
        """The loss in nats a token and the rate in tokens a second at `step`."""
        if sys.stderr.isatty():
            self._show_bar(step, f"loss {loss:.3f}, {rate:,.0f} tokens/s")
            return
        now = time.monotonic()
        begin, then = self._first or (step, now)
        self._first = begin, then
        left = (now - then) / max(step - begin, 1) * (self._steps - step)
        timing = f", {left // 60:.0f}:{left % 60:02.0f} left" if step > begin else ""
        say(f"step {step:,}/{self._steps:,}, loss {loss:.3f}, {rate:,.0f} tokens/s{timing}")

    def _show_bar(self, step: int, numbers: str) -> None:
        if self._bar is None:  # not before there is something to show: the time left counts from here
            self._bar = tqdm(total=self._steps, initial=step, unit="step", dynamic_ncols=True, file=sys.stderr)
        self._bar.set_postfix_str(numbers, refresh=False)
        self._bar.update(step - self._bar.n)

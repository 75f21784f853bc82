# SPDX-License-Identifier: MIT
"""Progress while images go by: a bar on a terminal, otherwise a plain line now and then."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


class Meter:
    """Counts the images of one pass and shows them; silent if `shown` is False."""

    def __init__(self, title: str, images: int, shown: bool, log_seconds: float):
        self.title, self.images, self.log_seconds = title, images, log_seconds
        self.done = 0
        self._started = self._logged = time.monotonic()
        on_terminal = shown and _has_terminal()
        self._prints_lines = shown and not on_terminal
        self._bar = None
        if on_terminal:
            self._bar = tqdm(total=images, desc=title, unit=" images", bar_format=BAR, leave=False, dynamic_ncols=True)

    @property
    def rate(self) -> float:
        """Images per second since the pass began."""
        return self.done / max(time.monotonic() - self._started, 1e-9)

    def seconds_left(self, further_images: int = 0) -> float:
        """For the rest of this pass and `further_images` after it."""
        return (self.images - self.done + further_images) / max(self.rate, 1e-9)

    def advance(self, images: int, note: Callable[[Meter], str] | None = None) -> None:
        """Count `images` more; what `note(self)` says is shown beside them."""
        self.done += images
        if self._bar is not None:
            if note is not None:
                self._bar.set_postfix_str(note(self), refresh=False)
            self._bar.update(images)
        elif self._prints_lines and time.monotonic() - self._logged >= self.log_seconds:
            self._logged = time.monotonic()
            words = [self.title, f"{self.done}/{self.images}", *([note(self)] if note else [])]
            left = format_seconds(self.seconds_left())
            print("  ".join(words), f" {self.rate:.0f} images/s  {left} left", flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def _has_terminal() -> bool:
    """Whether a bar can be drawn: some pseudo-terminals are 0 columns wide."""
    return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0


class Progress:
    """Makes the meters of a program."""

    def __init__(self, shown: bool, log_seconds: float = 30.0):
        self.shown, self.log_seconds = shown, log_seconds

    @contextlib.contextmanager
    def over(self, title: str, images: int) -> Iterator[Meter]:
        """A meter for one pass over `images`."""
        meter = Meter(title, images, self.shown, self.log_seconds)
        try:
            yield meter
        finally:
            meter.close()


def format_seconds(seconds: float) -> str:
    """65.2 -> 0:01:05."""
    return str(datetime.timedelta(seconds=round(seconds)))

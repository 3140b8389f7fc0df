"""Keeps one source open: reads it in a thread, notices that it hangs, and opens it again.

The watchdog is ours (age of the last item), because the time-outs of capture libraries cannot be
trusted. Each opening of the source is an attempt with a reader and a daemon thread of its own,
which also closes it; an attempt that hangs is abandoned: whatever it still reads is discarded.
A source that was lost is opened again for as long as it takes. The attempt that went silent
stays in the race until another one delivers, so a camera that only paused is back at once.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from edgemm.errors import EdgemmError, SourceError
from edgemm.live.sources.base import Reader, TransientSourceError, interrupt, redact

T = TypeVar("T")
StatusCallback = Callable[[str, str, str], None]
logger = logging.getLogger(__name__)

TICK_S = 0.03
PROBE_EVERY_S = 0.25


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, in seconds.

    A source is stalled after 2.5 of its own intervals without an item, held within
    `stall_min_s` and `stall_max_s`; it is lost `lost_after_s` later.
    """

    stall_min_s: float = 0.8
    stall_max_s: float = 10.0
    lost_after_s: float = 1.0
    open_s: float = 8.0
    never_opened_s: float = 5.0
    backoff_min_s: float = 0.25
    backoff_max_s: float = 5.0

    def for_people(self) -> Patience:
        """The same, but opening may take any time."""
        return replace(self, open_s=math.inf, never_opened_s=math.inf)


class Backoff:
    """Delays that double from the least to the most, each shortened by up to a quarter at random
    so that many clients of one camera do not come back in step."""

    def __init__(self, least_s: float, most_s: float) -> None:
        self._least_s, self._most_s = least_s, most_s
        self._next_s = least_s

    def next_s(self) -> float:
        """The next delay."""
        delay_s, self._next_s = self._next_s, min(2 * self._next_s, self._most_s)
        return delay_s * random.uniform(0.75, 1.0)

    def reset(self) -> None:
        """Starts from the least again."""
        self._next_s = self._least_s


class _Attempt:
    """One opening of the source."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.started_s = time.monotonic()
        self.abandoned = False
        self.finished = False
        self.error: EdgemmError | None = None
        self.thread: threading.Thread | None = None
        self.reader: object = None


class Supervisor(Generic[T]):
    """Runs the attempts of one source and says how it goes.

    `deliver(item, reader)` is called in the reading thread for each item of the attempt that
    counts, `discard(item)` for items of abandoned ones, `closed(reader)` when an attempt is over,
    `reconnected()` when a lost source is back and `finished()` once when no item will come any
    more. `on_status(name, state, reason)` is called in the watching thread only.
    """

    def __init__(
        self,
        *,
        name: str,
        spec: str,
        live: bool,
        make_reader: Callable[[], Reader[T]],
        deliver: Callable[[T, Reader[T]], None],
        discard: Callable[[T], None],
        closed: Callable[[Reader[T]], None],
        reconnected: Callable[[], None],
        finished: Callable[[], None],
        on_status: StatusCallback,
        probe: Callable[[], bool] | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.error: EdgemmError | None = None
        self.stopping = threading.Event()
        self.live = live
        self._name, self._spec = name, redact(spec)
        self._make_reader, self._deliver, self._discard = make_reader, deliver, discard
        self._closed, self._reconnected, self._finished = closed, reconnected, finished
        self._on_status, self._probe = on_status, probe
        self._patience = patience or Patience()
        self._backoff = Backoff(self._patience.backoff_min_s, self._patience.backoff_max_s)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._current: _Attempt | None = None
        self._pending: _Attempt | None = None
        self._attempts: list[_Attempt] = []
        # of all attempts: a camera that has become slow is known by what comes in spite of reopening it
        self._arrivals_s: deque[float] = deque(maxlen=10)
        self._state = "new"
        self._launched = 0
        self._reopen_at_s: float | None = None
        self._probe_at_s = 0.0
        self._answers = True
        self._began_s = 0.0
        self._live_since_s: float | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the watching thread; returns at once."""
        self._thread = threading.Thread(target=self._watch, name=f"edgemm-watch-{self._name}", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Asks everything to end and waits for it, never longer than `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        self.stopping.set()
        with self._lock:
            for attempt in self._attempts:
                attempt.abandoned = True
                interrupt(attempt.reader)
            self._wake.set()
            threads = [self._thread, *(attempt.thread for attempt in self._attempts)]
        for thread in threads:
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline_s - time.monotonic()))

    # --- reading threads ---------------------------------------------------------------------

    def _launch(self) -> None:
        self._launched += 1
        attempt = _Attempt(self._launched)
        attempt.thread = threading.Thread(
            target=self._read,
            args=(attempt,),
            name=f"edgemm-read-{self._name}-{attempt.number}",
            daemon=True,
        )
        with self._lock:
            self._pending = attempt
            self._attempts.append(attempt)
        attempt.thread.start()

    def _read(self, attempt: _Attempt) -> None:
        reader: Reader[T] | None = None
        try:
            attempt.reader = reader = self._make_reader()
            reader.open()
            while not attempt.abandoned:
                item = reader.read()
                if item is None:
                    break
                self._accept(attempt, item, reader)
        except EdgemmError as error:
            attempt.error = error
        except Exception as error:  # a library's surprise must not end the watch
            attempt.error = TransientSourceError(f"{self._spec}: {type(error).__name__}: {redact(str(error))}")
        finally:
            if reader is not None:
                reader.close()
                self._closed(reader)
            with self._lock:
                attempt.finished = True
                self._wake.set()

    def _accept(self, attempt: _Attempt, item: T, reader: Reader[T]) -> None:
        with self._lock:
            accepted = not attempt.abandoned
            if accepted:
                self._arrivals_s.append(time.monotonic())
                if attempt is not self._current:
                    self._take_over(attempt)
                elif self._state != "live":
                    self._wake.set()
        if accepted:
            self._deliver(item, reader)
        else:
            self._discard(item)

    def _take_over(self, attempt: _Attempt) -> None:
        """The first item of this attempt: all others lose."""
        for other in self._attempts:
            other.abandoned = other is not attempt
        self._current, self._pending = attempt, None
        self._wake.set()

    # --- the watching thread -----------------------------------------------------------------

    def _watch(self) -> None:
        self._began_s = time.monotonic()
        self._status("opening", self._spec)
        self._launch()
        reason: str | None = None
        while reason is None:
            self._wake.wait(TICK_S if self.live else 0.2)
            self._wake.clear()
            reason = "stopped" if self.stopping.is_set() else self._step(time.monotonic())
        self._finished()
        self._status("ended", self.error.message if self.error is not None else reason)

    def _step(self, now_s: float) -> str | None:
        """Looks at everything once; returns why it ended, or None to go on."""
        self._note_items(now_s)
        ended = self._reap(now_s)
        if ended is not None or not self.live:
            return ended
        self._check_age(now_s)
        self._reopen(now_s)
        return None

    def _note_items(self, now_s: float) -> None:
        """Items since the last look end `opening`, `stalled` and `lost`."""
        current = self._current
        if current is None or self._state == "live":
            return
        if self.live and now_s - self._arrivals_s[-1] >= self._stall_s():
            return
        before, self._reopen_at_s, self._live_since_s = self._state, None, now_s
        if self._pending is not None and self._pending is not current:
            self._pending.abandoned, self._pending = True, None
        if before == "lost":
            self._reconnected()
            self._status("reconnected", self._spec)
            self._state = "live"
        else:
            self._status("live", "it goes on" if before == "stalled" else self._spec)

    def _reap(self, now_s: float) -> str | None:
        """Takes note of attempts that are over."""
        with self._lock:
            over = [attempt for attempt in self._attempts if attempt.finished]
            self._attempts = [attempt for attempt in self._attempts if not attempt.finished]
        for attempt in over:
            if attempt.abandoned:
                continue
            straggler = attempt is self._current and self._state == "lost"
            if attempt is self._current:
                self._current = None
            elif attempt is self._pending:
                self._pending = None
            if straggler:
                continue
            if attempt.error is None:
                return "the end was reached"
            if self._is_final(attempt.error, now_s):
                self.error = attempt.error
                return attempt.error.message
            self._lose(attempt.error.message, now_s)
        return None

    def _is_final(self, error: EdgemmError, now_s: float) -> bool:
        """Whether opening again cannot help: it never worked, or it is no live source."""
        if not self.live:
            return True
        if self._state != "opening":
            return False
        waited_s = now_s - self._began_s
        transient = isinstance(error, TransientSourceError)
        return not transient or waited_s >= self._patience.never_opened_s

    def _check_age(self, now_s: float) -> None:
        pending = self._pending
        if self._current is not None:
            age_s, stall_s = now_s - self._arrivals_s[-1], self._stall_s()
            if self._state == "live" and age_s >= stall_s:
                self._status("stalled", f"nothing came for {age_s:.1f} s")
            if self._state == "stalled" and age_s >= stall_s + self._patience.lost_after_s:
                self._lose(f"nothing came for {age_s:.1f} s", now_s, at_once=True)
        if pending is not None and now_s - pending.started_s > self._patience.open_s:
            pending.abandoned, self._pending = True, None
            error = SourceError(
                f"{self._spec} gave nothing for {self._patience.open_s:.0f} s after opening",
                hint="check the device and the address",
                code="source_timeout",
            )
            if self._state == "opening":
                self._give_up(error)
            else:
                self._lose(error.message, now_s)

    def _give_up(self, error: EdgemmError) -> None:
        self.error = error
        self.stopping.set()

    def _lose(self, reason: str, now_s: float, *, at_once: bool = False) -> None:
        """The source is gone: say so once, and plan the next opening."""
        lived_s = now_s - self._live_since_s if self._live_since_s is not None else 0.0
        if lived_s > 2.0:
            self._backoff.reset()
        self._live_since_s = None
        if self._state in ("live", "stalled"):
            self._status("lost", reason)
        self._reopen_at_s = now_s if at_once else now_s + self._backoff.next_s()
        self._answers = self._probe is None or self._probe()
        self._probe_at_s = now_s + PROBE_EVERY_S

    def _reopen(self, now_s: float) -> None:
        if self._reopen_at_s is None or self._pending is not None:
            return
        if now_s >= self._reopen_at_s or self._just_came_back(now_s):
            self._reopen_at_s = None
            self._launch()

    def _just_came_back(self, now_s: float) -> bool:
        """A source that answers after it did not is opened now, whatever the back-off says."""
        if self._probe is None or self._answers or now_s < self._probe_at_s:
            return False
        self._probe_at_s = now_s + PROBE_EVERY_S
        self._answers = self._probe()
        if self._answers:
            self._backoff.reset()
        return self._answers

    def _stall_s(self) -> float:
        patience = self._patience
        return min(max(2.5 * self._interval_s(), patience.stall_min_s), patience.stall_max_s)

    def _interval_s(self) -> float:
        """Median time between the last items, 0 where unknown; a stall does not move it."""
        with self._lock:
            times_s = list(self._arrivals_s)
        gaps = [later - earlier for earlier, later in itertools.pairwise(times_s)]
        return statistics.median(gaps) if gaps else 0.0

    def _status(self, state: str, reason: str) -> None:
        self._state = state
        try:
            self._on_status(self._name, state, redact(reason))
        except Exception:  # a listener's bug must not stop the watch
            logger.exception("a status listener failed")

"""A call that another thread cancels."""

from __future__ import annotations

import contextlib
import threading


@contextlib.contextmanager
def cancelled(decoder, every_s=0.1):
    """Cancels what `decoder` is doing, again and again: a call that has not begun yet is not stopped by one word."""
    done = threading.Event()

    def cancel():
        while not done.wait(every_s):
            decoder.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()

"""An engine that does not fit any more is built again behind the back of the portable graph, which serves meanwhile.

The new one lies where the next load finds it; what is loaded is never exchanged under a caller.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence

from edgemm.bundle.manifest import Component
from edgemm.bundle.opening import Bundle, open_bundle
from edgemm.errors import BundleError, EdgemmError
from edgemm.runtimes import engines
from edgemm.runtimes.engines import Tell

_PATIENCE_S = 2.0
"""How long the end of the process waits for builders that were told to stop."""


class _Cancelled(Exception):
    """Raised inside the work, which ends the process that builds."""


class Rebuild:
    """Work in a thread of its own. `state` is `building`, `done`, `failed` or `cancelled`; `share` 0…1 lies behind.

    `what` is being done; `error` says why it failed.
    """

    def __init__(self, work: Callable[[Tell], object], name: str) -> None:
        self.state, self.what, self.share = "building", name, 0.0
        self.error: EdgemmError | None = None
        self._work = work
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"rebuild {name}", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it has ended, after at most `timeout_s` seconds."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """Stop at the next sign of progress; nothing is left behind."""
        self._stop.set()

    def _run(self) -> None:
        try:
            self._work(self._tell)
            self.share, self.state = 1.0, "done"
        except _Cancelled:
            self.state = "cancelled"
        except EdgemmError as error:
            self.error, self.state = error, "failed"
        except OSError as error:
            self.error, self.state = BundleError(f"the engine could not be built: {error}"), "failed"
        finally:
            if self.state == "building":
                self.state = "failed"

    def _tell(self, what: str, share: float) -> None:
        if self._stop.is_set():
            raise _Cancelled
        self.what, self.share = what, share


_LOCK = threading.Lock()
_RUNNING: dict[str, Rebuild] = {}


def rebuild(bundle: Bundle, component: Component, target: str, gpus: Sequence[str]) -> Rebuild:
    """Build an engine in the background, in a process of its own as `edgemm build` does.

    One at a time: who asks again meanwhile gets the same.
    """
    planned = engines.plan(bundle, component, target, gpus)

    def work(tell: Tell) -> None:
        with engines.scratch_folder() as scratch:
            made = engines.build(bundle, planned, scratch, tell)
            # Opened anew: others may have added to it since.
            engines.keep(open_bundle(bundle.path), [made])

    key = f"{bundle.path.resolve()} {planned.digest}"
    with _LOCK:
        running = _RUNNING.get(key)
        if running is None or running.state != "building":
            running = _RUNNING[key] = Rebuild(work, component.name)
        return running


@atexit.register
def _end() -> None:
    with _LOCK:
        running = [r for r in _RUNNING.values() if r.state == "building"]
    for one in running:
        one.cancel()
    for one in running:
        one.wait(_PATIENCE_S / len(running))

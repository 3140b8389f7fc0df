"""voice_activity: is someone speaking? Silero's recurrent graph, 32 ms at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import InputError
from edgemm.runtimes.base import as_numpy
from edgemm.tasks.graphs import Graphs

_CONTEXT_SAMPLES = 64
_STATE_SHAPE = (2, 1, 128)


class VoiceActivity:
    """A stream of 512-sample chunks at 16 kHz → the probability of speech in each."""

    chunk_samples = 512
    sample_rate_hz = 16_000

    def __init__(self, graphs: Graphs) -> None:
        self._session = graphs.session("voice_activity")
        self._has_rate = "sr" in self._session.inputs
        # OpenVINO renames the probability's output after a node inside the graph.
        self._state_output = next(n for n in self._session.outputs if "state" in n.lower())
        self._output = next(n for n in self._session.outputs if n != self._state_output)
        self.reset()

    def reset(self) -> None:
        """Forget what was heard."""
        self._state: NDArray[np.float32] = np.zeros(_STATE_SHAPE, np.float32)
        self._context: NDArray[np.float32] = np.zeros((1, _CONTEXT_SAMPLES), np.float32)

    def push(self, samples: NDArray[np.float32]) -> float:
        """`samples` float32 [512] → probability in 0…1. Raises InputError for another length."""
        if samples.shape != (self.chunk_samples,):
            raise InputError(f"voice activity takes {self.chunk_samples} samples, not {samples.shape}")
        heard = np.concatenate([self._context, samples[None].astype(np.float32)], axis=1)
        feeds = {"input": heard, "state": self._state}
        if self._has_rate:
            feeds["sr"] = np.array(self.sample_rate_hz, np.int64)
        outputs = self._session.run(feeds)
        self._state = as_numpy(outputs[self._state_output])
        self._context = heard[:, -_CONTEXT_SAMPLES:]
        return float(as_numpy(outputs[self._output]).ravel()[0])

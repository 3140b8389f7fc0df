"""What a pipeline is asked to do: frozen, checked once, the `config` of the `started` event."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgemm.errors import UsageError

VISION_TASKS = ("classify", "detect", "caption", "describe", "answer")
SOUND_TASKS = ("transcribe",)


@dataclass(frozen=True)
class SpeechOptions:
    """When speech begins and ends. Probabilities are of the voice activity model; speech begins at
    `threshold` and lasts while the probability stays above `threshold_off`.

    Sound shorter than `min_speech_s` is not speech; `endpoint_s` of silence ends an utterance;
    `pre_roll_s` before and `padding_s` after it belong to it; one longer than `max_utterance_s` is
    split at its quietest place.

    While somebody speaks, partial transcripts come every `partial_every_s` (less often where decoding takes more than
    half of that; None: never). The final one is decoded after `speculate_s` of silence and told after `endpoint_s`; it
    is thrown away if speech goes on. `barge_in_s` of voice cut off an answer that is being given; None: nothing does.
    """

    threshold: float = 0.5
    threshold_off: float = 0.35
    min_speech_s: float = 0.25
    endpoint_s: float = 0.5
    pre_roll_s: float = 0.25
    padding_s: float = 0.2
    max_utterance_s: float = 15.0
    partial_every_s: float | None = 0.3
    speculate_s: float = 0.2
    barge_in_s: float | None = 0.13

    def __post_init__(self) -> None:
        if not 0 < self.threshold_off <= self.threshold < 1:
            raise UsageError(
                f"voice thresholds {self.threshold_off} and {self.threshold} are not in order",
                hint="0 < threshold_off <= threshold < 1",
            )
        if self.padding_s > self.endpoint_s:
            raise UsageError("padding_s is longer than endpoint_s", hint="lower padding_s")
        if self.max_utterance_s < 2.0:
            raise UsageError(f"max_utterance_s is {self.max_utterance_s}", hint="give 2 seconds or more")
        _positive("partial_every_s", self.partial_every_s)
        _positive("barge_in_s", self.barge_in_s)


@dataclass(frozen=True)
class StreamOptions:
    """Sources, tasks and limits of one run.

    `cameras` and `mic` take what `--camera` and `--mic` take. With `mic` None a single file's own
    sound is used; "none" disables a source. `tasks` None means every live task of the model, but `describe` only
    where it has no captions.
    `every_s` is the least time between two frames that are looked at (media time when as fast as
    possible); with `on_change` only frames that differ from the one last looked at are, and one at least every 10 s.
    `score_min` is of labels and objects; 0 means 0.5 for objects. `labels` are the only ones that
    are told, by the model's own names; None tells all.
    `window` frames, `window_fps` of them a second, are what is described.
    With `wake` phrases only what is said after one of them is a question; without, whatever ends with a question mark.
    `language` is a code that the speech model knows; None lets it decide. `max_frames` counts
    processed frames; `duration_s` counts from the moment the sources open, or media time when as
    fast as possible.
    """

    cameras: tuple[str, ...] = ()
    mic: str | None = None
    tasks: tuple[str, ...] | None = None
    ask: tuple[str, ...] = ()
    wake: tuple[str, ...] = ()
    every_s: float = 0.0
    on_change: bool = False
    top: int = 5
    labels: tuple[str, ...] | None = None
    language: str | None = None
    score_min: float = 0.0
    max_new_tokens: int = 64
    window: int = 8
    window_fps: float = 2.0
    size_px: tuple[int, int] | None = None
    fps: float | None = None
    max_frames: int | None = None
    duration_s: float | None = None
    as_fast_as_possible: bool = False
    push: bool = False
    stats_every_s: float = 1.0
    speech: SpeechOptions = field(default_factory=SpeechOptions)

    def __post_init__(self) -> None:
        _positive("max_frames", self.max_frames)
        _positive("duration_s", self.duration_s)
        _positive("fps", self.fps)
        _positive("window_fps", self.window_fps)
        if self.window < 2:
            raise UsageError(f"window is {self.window}", hint="give 2 frames or more")
        if self.every_s < 0:
            raise UsageError(f"every_s is {self.every_s}", hint="give 0 or more seconds")
        for phrase in self.wake:
            if not any(letter.isalnum() for letter in phrase):
                raise UsageError(f"the wake phrase {phrase!r} has no words", hint='give one such as "hey robot"')
        if self.cameras.count("browser://") > 1:
            raise UsageError("browser:// is given twice", hint="a run can have one browser's camera")
        known = VISION_TASKS + SOUND_TASKS
        unknown = [task for task in self.tasks or () if task not in known]
        if unknown:
            raise UsageError(f"no live task is called {unknown[0]!r}", hint=f"there are: {', '.join(known)}")

    @property
    def open_cameras(self) -> tuple[str, ...]:
        """The cameras less those that are "none"."""
        return tuple(camera for camera in self.cameras if camera != "none")


def _positive(name: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise UsageError(f"{name} is {value}", hint="give a number above 0")

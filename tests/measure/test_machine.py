"""doctor's findings, and the statistics of bench."""

from __future__ import annotations

import pytest

from edgemm.measure.machine import conflicts
from edgemm.measure.timing import interleaved, quantile


@pytest.mark.parametrize(
    ("owners", "wanted"),
    [
        ({"cv2": ["opencv-python"], "onnxruntime": ["onnxruntime"]}, []),
        ({"cv2": ["opencv-python", "opencv_python_headless"]}, ["cv2"]),
        ({"onnxruntime": ["onnxruntime-gpu", "onnxruntime"]}, ["onnxruntime"]),
        ({"cv2": ["opencv-python", "opencv-python"]}, []),
    ],
)
def test_conflicts(owners: dict[str, list[str]], wanted: list[str]) -> None:
    found = conflicts(owners)
    assert [p.what for p in found] == wanted
    for problem in found:
        assert problem.fix.startswith("run: pip uninstall -y ")


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [([3.0, 1.0, 2.0], 0.5, 2.0), ([1.0], 0.99, 1.0), (list(range(1, 201)), 0.99, 198)],
)
def test_quantile(values: list[float], share: float, wanted: float) -> None:
    assert quantile(values, share) == wanted


def test_rounds_are_interleaved() -> None:
    order: list[str] = []
    times = interleaved({k: lambda k=k: order.append(k) for k in "ab"}, 3)  # type: ignore[misc]
    assert "".join(order) == "ab" + "ab" * 3
    assert {t.rounds for t in times.values()} == {3}

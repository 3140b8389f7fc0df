"""A rover with two driven wheels and a camera, simulated by MuJoCo."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("MUJOCO_GL", "osmesa")  # draws without a display or a GPU; "egl" is faster where there is one

import mujoco
from commands import Command

WHEEL_RADIUS_M, TRACK_M = 0.08, 0.28  # as in rover.xml
CONTROL_S = 0.02
SPEED_M_S = 0.6
TURN_RAD_S = 1.5
GAIN_PER_S = 4.0
NEAR_M = 0.02
NEAR_RAD = 0.03
REST_RAD_S = 0.05
LONGEST_S = 8.0


@dataclass(frozen=True)
class Pose:
    """Where the rover is on the floor; the heading is 0 along x and grows to the left."""

    x_m: float
    y_m: float
    heading_rad: float


@dataclass(frozen=True)
class Motion:
    """How far a command goes. It is given up after `LONGEST_S`, so that a rover that hears nothing more comes to rest,
    whatever stands in its way."""

    distance_m: float = 0.0
    angle_rad: float = 0.0


STANDSTILL = Motion()
MOTIONS: dict[Command, Motion] = {
    "forward": Motion(distance_m=1.0),
    "backward": Motion(distance_m=-1.0),
    "left": Motion(angle_rad=math.pi / 2),
    "right": Motion(angle_rad=-math.pi / 2),
    "around": Motion(angle_rad=math.pi),
    "stop": STANDSTILL,
}


class Rover:
    """The simulation: `obey` a command, `advance` the time, take a `picture`. For one thread only.

    A real rover has the same three methods: wheel speeds go to its motors, and the pose comes from its odometry.
    """

    def __init__(self, *, width_px: int = 320, height_px: int = 240) -> None:
        self._model = mujoco.MjModel.from_xml_path(str(Path(__file__).with_name("rover.xml")))
        self._data = mujoco.MjData(self._model)
        self._renderer = mujoco.Renderer(self._model, height_px, width_px)
        mujoco.mj_forward(self._model, self._data)
        self._start, self._motion, self._until_s = self.pose, STANDSTILL, 0.0

    def close(self) -> None:
        """Frees the renderer."""
        self._renderer.close()

    @property
    def pose(self) -> Pose:
        """Where it is now."""
        body = self._data.body("rover")
        forward = body.xmat.reshape(3, 3)[:, 0]
        return Pose(float(body.xpos[0]), float(body.xpos[1]), math.atan2(forward[1], forward[0]))

    @property
    def moving(self) -> bool:
        """Whether a command is being carried out, or the wheels still turn."""
        return self._motion is not STANDSTILL or bool(np.abs(self._data.actuator_velocity).max() > REST_RAD_S)

    def obey(self, command: Command) -> None:
        """Begins to carry out a command, in place of the one before."""
        self._start, self._motion, self._until_s = self.pose, MOTIONS[command], self._data.time + LONGEST_S

    def advance(self, duration_s: float) -> None:
        """Simulates `duration_s` in steps of `CONTROL_S`."""
        steps = round(CONTROL_S / self._model.opt.timestep)
        for _ in range(round(duration_s / CONTROL_S)):
            self._data.ctrl[:] = self._wheel_speeds_rad_s()
            mujoco.mj_step(self._model, self._data, steps)

    def picture(self) -> NDArray[np.uint8]:
        """What its camera sees: uint8 [H, W, 3] RGB, a new array each time."""
        self._renderer.update_scene(self._data, camera="front")
        return self._renderer.render()

    def _wheel_speeds_rad_s(self) -> tuple[float, float]:
        """Of the left and the right wheel: in proportion to what is left of the motion, up to the greatest speed."""
        distance_m, angle_rad = self._remaining()
        there = abs(distance_m) < NEAR_M and abs(angle_rad) < NEAR_RAD
        if there or self._data.time > self._until_s:
            self._motion = STANDSTILL
            return 0.0, 0.0
        speed_m_s = np.clip(GAIN_PER_S * distance_m, -SPEED_M_S, SPEED_M_S)
        rim_m_s = np.clip(GAIN_PER_S * angle_rad, -TURN_RAD_S, TURN_RAD_S) * TRACK_M / 2
        return (speed_m_s - rim_m_s) / WHEEL_RADIUS_M, (speed_m_s + rim_m_s) / WHEEL_RADIUS_M

    def _remaining(self) -> tuple[float, float]:
        """What is left of the motion: metres along the heading at its start (0 where it only turns), and radians."""
        if self._motion is STANDSTILL:
            return 0.0, 0.0
        start, motion, now = self._start, self._motion, self.pose
        angle_rad = math.remainder(start.heading_rad + motion.angle_rad - now.heading_rad, math.tau)
        if not motion.distance_m:
            return 0.0, angle_rad
        east_m, north_m = now.x_m - start.x_m, now.y_m - start.y_m
        gone_m = east_m * math.cos(start.heading_rad) + north_m * math.sin(start.heading_rad)
        return motion.distance_m - gone_m, angle_rad

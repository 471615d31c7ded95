"""Balls that bounce in a box, off its walls and off each other, and videos of them.

After the videos of arXiv:1909.10893, section 4.2, and of arXiv:1802.10353. Everything here is in
units of the box: its side is 1, and time is counted in frames.
"""

from __future__ import annotations

from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.data.common import check_at_least, check_choice

Masses = Literal["equal", "different"]
MASSES: tuple[Masses, ...] = ("equal", "different")

#: Steps of the simulation per frame: a ball moves by a small part of its radius in each.
SUBSTEPS = 10

#: Radii of balls of different masses, in units of the common one; masses go with the area.
_RADII = (0.7, 1.3)

_TRIES = 1000  # places that are drawn for one ball before all begin anew
_RESTARTS = 100


class Balls(NamedTuple):
    """Motion of N balls in M boxes over T frames."""

    positions: NDArray[np.float64]  # (M, T, N, 2), y then x, of the centres
    velocities: NDArray[np.float64]  # (M, T, N, 2), per frame
    radii: NDArray[np.float64]  # (M, N)
    masses: NDArray[np.float64]  # (M, N)


def simulate(
    num_videos: int,
    num_frames: int,
    num_balls: int,
    rng: np.random.Generator,
    *,
    radius: float = 0.1,
    speed: float = 0.05,
    masses: Masses = "equal",
) -> Balls:
    """Let balls move without friction; collisions are elastic, with walls and in pairs.

    Two balls that touch and approach exchange the impulse
    ``2 m_i m_j / (m_i + m_j) (v_i - v_j) . n`` along the line n between their centres, which keeps
    their energy and momentum.

    Args:
        num_videos: M.
        num_frames: T.
        num_balls: N.
        rng: source of all draws: places without overlap, directions, masses.
        radius: radius of a ball. Default 0.1.
        speed: initial speed of each ball, per frame. Default 0.05.
        masses: ``equal``, or ``different``: radii from 0.7 to 1.3 of ``radius``, and masses that
            go with their squares. Default ``equal``.

    Returns:
        Where the balls were and how fast, at every frame.

    Raises:
        ValueError: if a number is below 1, masses are called otherwise, or the balls find no room.

    Example:
        >>> balls = simulate(3, 20, 4, np.random.default_rng(0))
        >>> energy = (balls.masses[:, None] * (balls.velocities**2).sum(-1) / 2).sum(-1)
        >>> balls.positions.shape, np.allclose(energy, energy[:, :1])
        ((3, 20, 4, 2), True)
    """
    for name, value in (("num_videos", num_videos), ("num_frames", num_frames)):
        check_at_least("simulate", name, value)
    check_at_least("simulate", "num_balls", num_balls)
    check_choice("simulate", "masses", masses, MASSES)
    shape = (num_videos, num_balls)
    radii = np.full(shape, radius)
    if masses == "different":
        radii = radius * rng.uniform(*_RADII, shape)
    weights = (radii / radius) ** 2
    place = np.stack([_placed(own, rng) for own in radii])
    angle = rng.uniform(0, 2 * np.pi, shape)
    motion = speed * np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    positions = np.empty((num_videos, num_frames, num_balls, 2))
    velocities = np.empty_like(positions)
    for frame in range(num_frames):
        positions[:, frame], velocities[:, frame] = place, motion
        for _ in range(SUBSTEPS):
            advance(place, motion, radii, weights, 1 / SUBSTEPS)
    return Balls(positions, velocities, radii, weights)


def advance(
    place: NDArray[np.float64],
    motion: NDArray[np.float64],
    radii: NDArray[np.float64],
    masses: NDArray[np.float64],
    time: float,
) -> None:
    """Move all balls for a short time, then let them bounce; ``place`` and ``motion`` change.

    Args:
        place: centres ``(M, N, 2)``.
        motion: velocities ``(M, N, 2)``, per frame.
        radii: ``(M, N)``.
        masses: ``(M, N)``.
        time: in frames.

    Example:
        >>> place, motion = np.array([[[0.5, 0.95]]]), np.array([[[0.0, 0.2]]])
        >>> advance(place, motion, np.array([[0.1]]), np.ones((1, 1)), 0.5)
        >>> motion.tolist()
        [[[0.0, -0.2]]]
    """
    place += time * motion
    low, high = radii[..., None], 1 - radii[..., None]
    outward = ((place < low) & (motion < 0)) | ((place > high) & (motion > 0))
    motion[outward] *= -1
    for i, j in combinations(range(place.shape[1]), 2):
        between = place[:, i] - place[:, j]  # (M, 2)
        squared = (between**2).sum(-1)
        towards = ((motion[:, i] - motion[:, j]) * between).sum(-1)
        hit = (squared < (radii[:, i] + radii[:, j]) ** 2) & (towards < 0)
        if hit.any():
            m_i, m_j = masses[hit, i], masses[hit, j]
            # (v . n) n with n = between / its length: both lengths together are its square.
            impulse = 2 * m_i * m_j / (m_i + m_j) * towards[hit] / squared[hit]
            motion[hit, i] -= (impulse / m_i)[:, None] * between[hit]
            motion[hit, j] += (impulse / m_j)[:, None] * between[hit]


def _placed(radii: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Centres of the balls of one box, none of which overlap."""
    for _ in range(_RESTARTS):
        places: list[NDArray[np.float64]] = []
        for own in radii:
            if 2 * own > 1:
                break
            tried = rng.uniform(own, 1 - own, (_TRIES, 2))
            free = np.ones(_TRIES, bool)
            for other, its in zip(places, radii, strict=False):
                free &= ((tried - other) ** 2).sum(-1) > (own + its) ** 2
            if not free.any():
                break
            places.append(tried[free.argmax()])
        if len(places) == len(radii):
            return np.stack(places)
    raise ValueError(
        f"simulate: {len(radii)} balls of radius {radii.max():g} must find room in a box of "
        "side 1; they did not. Take fewer or smaller ones."
    )


def draw_frames(balls: Balls, side: int) -> NDArray[np.uint8]:
    """Draw white balls on black, with smooth edges.

    A pixel is as bright as the distance from its centre to the ball's edge says, which is about
    the share of it that the ball covers.

    Args:
        balls: motion from :func:`simulate`.
        side: pixels of a frame's side.

    Returns:
        ``(M, T, side, side)``, 0 to 255.

    Example:
        >>> draw_frames(simulate(2, 5, 3, np.random.default_rng(0)), 16).shape
        (2, 5, 16, 16)
    """
    check_at_least("draw_frames", "side", side)
    middle = ((np.arange(side) + 0.5) / side).astype(np.float32)
    num_videos, num_frames, _, _ = balls.positions.shape
    frames = np.empty((num_videos, num_frames, side, side), np.uint8)
    for video in range(num_videos):  # one at a time: what is worked on stays in the cache
        places = balls.positions[video].astype(np.float32)  # (T, N, 2)
        light = np.zeros((num_frames, side, side), np.float32)
        for ball, edge in enumerate(balls.radii[video].astype(np.float32)):
            y, x = ((places[:, ball, axis, None] - middle) ** 2 for axis in (0, 1))  # (T, side)
            distance = np.sqrt(y[:, :, None] + x[:, None, :])
            np.maximum(light, (edge - distance) * np.float32(side) + np.float32(0.5), out=light)
        frames[video] = 255 * light.clip(0, 1) + 0.5
    return frames


def draw_curtains(num_videos: int, side: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw places of invisible curtains: squares of half the frame's side, at random.

    Args:
        num_videos: M.
        side: pixels of a frame's side, 2 or more.
        rng: source of the draws.

    Returns:
        ``(M, side, side)``, true where a ball cannot be seen.

    Example:
        >>> draw_curtains(3, 8, np.random.default_rng(0)).sum((1, 2)).tolist()
        [16, 16, 16]
    """
    check_at_least("draw_curtains", "side", side, 2)
    half = side // 2
    corner = rng.integers(0, side - half + 1, (num_videos, 2, 1))
    inside = (np.arange(side) >= corner) & (np.arange(side) < corner + half)  # (M, 2, side)
    return inside[:, 0, :, None] & inside[:, 1, None, :]

"""Bouncing balls: which frames of a video come next (arXiv:1909.10893, section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.configs.sequences import BouncingBallsConfig
from experiments.data.bouncing_balls import draw_curtains, draw_frames, simulate
from experiments.data.common import shuffled
from experiments.experiment import Curve, Row, Selection
from experiments.shared.images import grid, parts
from experiments.shared.sequences import (
    NUMBER,
    Phase,
    SequenceExperiment,
    SequenceModel,
    Shown,
    outputs_memory,
)
from lab.reporting.tables import trained_label
from lab.words import plural

_EVALUATION_BATCH = 50  # videos
_TRAIN, _VALIDATION, _TEST = 0, 1, 2  # keep the draws of one seed apart
_SHOWN = 50

#: Frames of a roll-out whose error is also given alone: later ones are hardly predictable.
FIRST_FRAMES = 10

Batch = Tensor  # (T, B, Y X), values in [0, 1]


class Videos(NamedTuple):
    """Frames of balls, and where curtains hide them."""

    frames: NDArray[np.uint8]  # (M, T, Y, X)
    curtains: NDArray[np.bool_]  # (M, Y, X), all false where there is none


class BouncingBallsExperiment(SequenceExperiment[BouncingBallsConfig, Batch]):
    """A core predicts the next frame of a video; tested with more balls, and far ahead.

    The loss is the binary cross-entropy of each pixel of the next frame. Tested are the weights of
    the epoch that was best on validation videos like those of training. In a roll-out the model
    sees some true frames and then its own predictions; it may be trained so, too.
    """

    selection = Selection("validation_cross_entropy", "lower")
    curves = (
        Curve("loss", "cross-entropy of the next frame, nats per pixel"),
        Curve("validation_cross_entropy", "the same on validation videos"),  # as it is trained
    )

    def make_model(self) -> nn.Module:
        """A linear map of the frame with a rectifier, the core, logits of the next frame."""
        pixels, size = self.config.side**2, self.config.embedding_size
        embedding = nn.Sequential(nn.Linear(pixels, size), nn.ReLU())
        return SequenceModel(embedding, self.config, pixels)

    def check(self) -> None:
        """Refuse settings with which no model can be built or balls find no room."""
        super().check()
        for balls in {self.config.balls, *self.config.counts}:
            self._videos(1, 1, balls, 0.0, _TEST)

    @property
    def data_memory(self) -> float:
        """Bytes of the training videos, and of the largest other set or batch."""
        config, pixels = self.config, float(self.config.side**2)
        told = config.context + config.rollout
        return pixels * config.frames * config.train_videos + max(
            pixels * config.frames * config.validation_videos,
            pixels * told * config.test_videos,
            NUMBER * pixels * config.frames * config.batch_size,
            outputs_memory(config, config.frames - 1, config.batch_size),
            NUMBER * pixels * told * min(config.test_videos, _EVALUATION_BATCH),
        )

    def _videos(
        self, number: int, frames: int, balls: int, curtain_share: float, stream: int
    ) -> Videos:
        """New videos, always the same ones; the first ones have curtains."""
        config, rng = self.config, self.rng(balls, stream)
        moved = simulate(
            number,
            frames,
            balls,
            rng,
            radius=config.radius,
            speed=config.speed,
            masses=config.masses,
        )
        curtains = draw_curtains(number, config.side, rng)
        curtains[round(number * curtain_share) :] = False
        seen = draw_frames(moved, config.side)
        seen[np.broadcast_to(curtains[:, None], seen.shape)] = 0
        return Videos(seen, curtains)

    @cached_property
    def _train(self) -> NDArray[np.uint8]:
        config = self.config
        share = config.curtain_share
        return self._videos(config.train_videos, config.frames, config.balls, share, _TRAIN).frames

    @cached_property
    def _validation(self) -> NDArray[np.uint8]:
        config, share = self.config, self.config.curtain_share
        number = config.validation_videos
        return self._videos(number, config.frames, config.balls, share, _VALIDATION).frames

    def test_videos(self, balls: int, *, curtain: bool) -> Videos:
        """The test videos with ``balls`` balls, all with a curtain or none."""
        config = self.config
        frames = config.context + config.rollout
        return self._videos(config.test_videos, frames, balls, float(curtain), _TEST)

    @property
    def steps_per_epoch(self) -> int:
        """Batches; the last one may be smaller."""
        return math.ceil(self.config.train_videos / self.config.batch_size)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Each video once."""
        for index in shuffled(self.rng(epoch), len(self._train), self.config.batch_size):
            yield self.as_input(self._train[index])

    def as_input(self, frames: NDArray[np.uint8]) -> Tensor:
        """Videos ``(B, T, Y, X)`` as the model takes them: ``(T, B, Y X)``."""
        values = torch.from_numpy(frames).to(self.device).flatten(2).float() / 255
        return values.transpose(0, 1).contiguous()

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Binary cross-entropy of all frames but the first."""
        return {"loss": _cross_entropy(model, batch, self.config.train_rollout)}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The loss on validation videos."""
        loss = self._cross_entropy(model, self._validation, self.config.train_rollout)
        return {"validation_cross_entropy": loss}

    def _cross_entropy(self, model: nn.Module, frames: NDArray[np.uint8], rollout: int) -> float:
        total = 0.0
        for part in parts(len(frames), _EVALUATION_BATCH):
            chosen = frames[part]
            total += float(_cross_entropy(model, self.as_input(chosen), rollout)) * len(chosen)
        return total / len(frames)

    def roll_out(self, model: nn.Module, video: Tensor) -> Tensor:
        """Predict frames: in the context each from the true ones before it, then from its own.

        Args:
            model: in evaluation mode.
            video: ``(T, B, Y X)``, of which the first ``context`` frames are looked at.

        Returns:
            ``(context - 1 + rollout, B, Y X)``, values in [0, 1]; the first is of the second frame.
        """
        return _predicted(model, video[: self.config.context], self.config.rollout).sigmoid()

    def test(self, model: nn.Module) -> dict[str, float]:
        """Errors of next frame and roll-out, for each number of balls, with and without curtain."""
        found = {}
        for balls, curtain in self._kinds:
            frames = self.test_videos(balls, curtain=curtain).frames
            key, errors = _key(balls, curtain), self._rollout_errors(model, frames)
            found[f"rollout_{key}"] = float(errors.mean())
            found[f"first_{key}"] = float(errors[:FIRST_FRAMES].mean())
            found[f"next_{key}"] = self._cross_entropy(model, frames, 0)
        return found

    @property
    def _kinds(self) -> list[tuple[int, bool]]:
        """Numbers of balls, each without and with a curtain."""
        return [(balls, curtain) for curtain in (False, True) for balls in self.config.counts]

    def _rollout_errors(self, model: nn.Module, frames: NDArray[np.uint8]) -> Tensor:
        """Mean squared error of each frame of the roll-out."""
        context = self.config.context
        total = torch.zeros(self.config.rollout, dtype=torch.float64)
        for part in parts(len(frames), _EVALUATION_BATCH):
            video = self.as_input(frames[part])
            wrong = self.roll_out(model, video)[context - 1 :] - video[context:]
            total += wrong.double().square().mean(2).sum(1).cpu()
        return total / len(frames)

    @cached_property
    def _guesses(self) -> dict[str, tuple[float, float]]:
        """Errors of the roll-out of two guesses: the last true frame again; the mean frame."""
        mean = self._train.mean((0, 1)) / 255
        found = {}
        for balls, curtain in self._kinds:
            frames = self.test_videos(balls, curtain=curtain).frames[:_SHOWN] / 255
            told, last = frames[:, self.config.context :], frames[:, self.config.context - 1, None]
            errors = (float(((told - guess) ** 2).mean()) for guess in (last, mean))
            found[video_label(balls, curtain)] = (next(errors), next(errors))
        return found

    @property
    def shown(self) -> Shown:
        """Validation videos, all frames of which are true."""
        video = self.as_input(self._validation[:_SHOWN])
        return Shown(video, [Phase("frames, all true", 0, len(video))])

    def pictures(self, model: nn.Module) -> Mapping[str, NDArray[np.uint8]]:
        """True frames of the first validation videos, above the predicted ones."""
        frames = self._validation[:3, :10]
        logits, _ = model(self.as_input(frames)[:-1])
        shape = (len(frames), -1, self.config.side, self.config.side)
        predicted = logits.sigmoid().transpose(0, 1).reshape(shape).cpu().numpy()
        pairs = np.stack([frames[:, 1:], (255 * predicted).round().astype(np.uint8)], axis=1)
        images = pairs.reshape(-1, self.config.side, self.config.side, 1)
        return {"next_frames": grid(images, pairs.shape[2], scale=max(1, 96 // self.config.side))}

    @property
    def rows(self) -> Sequence[Row]:
        """Roll-outs first, then their beginnings, then next frames."""
        what = {
            "rollout": f"roll-out error over {self.config.rollout} frames",
            "first": f"roll-out error over {min(FIRST_FRAMES, self.config.rollout)} frames",
            "next": "cross-entropy of the next frame",
        }
        return [
            Row(
                f"{kind}_{_key(balls, curtain)}",
                trained_label(
                    f"{text}, {video_label(balls, curtain)}",
                    balls == self.config.balls and self._has_trained(curtain),
                ),
                "",
                "lower",
                0.0,
                drawn=kind == "rollout",
            )
            for kind, text in what.items()
            for balls, curtain in self._kinds
        ]

    def _has_trained(self, curtain: bool) -> bool:
        share = self.config.curtain_share
        return share > 0 if curtain else share < 1

    @property
    def notes(self) -> Sequence[str]:
        """Notes for readers of the tables."""
        config = self.config
        guesses = "; ".join(
            f"{label} {last:.4f} and {mean:.4f}" for label, (last, mean) in self._guesses.items()
        )
        return [
            f"Videos of {config.side} x {config.side} pixels, in training with {config.balls} "
            f"balls and in {100 * config.curtain_share:.0f} % of them an invisible curtain, a "
            "square of half the side that hides what is behind it. Roll-out error: mean squared "
            f"error of the {config.rollout} frames predicted after {config.context} true ones, "
            "each from the one predicted before, over pixels, frames and "
            f"{config.test_videos} videos. Cross-entropy of the next frame: nats per pixel, all "
            f"frames before it true. {self._training} Tested are the weights of the epoch that "
            "was best on validation videos.",
            "Roll-out errors of two guesses, the last true frame and the mean training frame: "
            f"{guesses}.",
            "The authors of arXiv:1909.10893 use convolutions before and after the core; here "
            "these are linear maps.",
        ]

    @property
    def _training(self) -> str:
        told, frames = self.config.train_rollout, self.config.frames
        if told <= 1:
            return "In training every frame was predicted from true frames."
        return f"In training the last {told} of {frames} frames were predicted as in a roll-out."


def _cross_entropy(model: nn.Module, video: Tensor, rollout: int) -> Tensor:
    """Cross-entropy of every next frame, per pixel."""
    rollout = max(1, rollout)
    logits = _predicted(model, video[: len(video) - rollout], rollout)
    return F.binary_cross_entropy_with_logits(logits, video[1:])


def _predicted(model: nn.Module, true: Tensor, rollout: int) -> Tensor:
    """Logits of the frame behind each true one, and of others, each behind the one predicted.

    The last ``rollout`` are those a roll-out consists of, the first of which follows on the last
    true frame.
    """
    logits: Tensor
    logits, state = model(true)
    if rollout == 1:
        return logits
    found = list(logits)
    for _ in range(rollout - 1):
        logits, state = model(found[-1].sigmoid()[None], state)
        found.append(logits[0])
    return torch.stack(found)


def _key(balls: int, curtain: bool) -> str:
    return f"{balls}_curtain" if curtain else str(balls)


def video_label(balls: int, curtain: bool) -> str:
    """The label of a kind of video.

    Example:
        >>> video_label(4, True)
        '4 balls, curtain'
    """
    label = plural(balls, "ball")
    return f"{label}, curtain" if curtain else label

"""Bouncing balls: videos and curtains, roll-outs, pictures and going on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from command_line import Rims, assert_one_line
from experiments.configs.sequences import BouncingBallsConfig
from experiments.fit import fit
from experiments.tasks.bouncing_balls import BouncingBallsExperiment
from image_cases import assert_goes_on, pictures_in
from lab.settings import ConfigError
from sequence_cases import SMALL, TINY, TWO_CORES, options

DATA: dict[str, Any] = {
    "balls": 2,
    "test_balls": "2,3",
    "side": 8,
    "frames": 7,
    "context": 4,
    "rollout": 3,
    "train_videos": 10,
    "validation_videos": 4,
    "test_videos": 5,
}


def bouncing(**settings: Any) -> BouncingBallsExperiment:
    return BouncingBallsExperiment(BouncingBallsConfig(**{**TINY, **DATA, **settings}))


class Shift(nn.Module):
    """Tells the frame before, darker each time; its state counts the frames it has seen."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.seen = factor, list[int]()

    def forward(self, video: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        state = torch.zeros(()) if state is None else state
        self.seen.append(int(state))
        told = (self.factor * video).clamp(1e-6, 1 - 1e-6)
        return told.logit(), state + len(video)


@pytest.mark.parametrize("core", TWO_CORES)
def test_run_that_is_broken_off_goes_on_exactly(tmp_path: Path, core: str) -> None:
    results = assert_goes_on(lambda: bouncing(model=core), tmp_path, step=4)
    assert results.steps == 6  # ten videos are three batches
    assert set(results.metrics) == {row.key for row in bouncing().rows}
    names = ["next_frames-0000003.png", "next_frames-0000006.png"]
    assert list(pictures_in(tmp_path / "whole")) == names


def test_videos_with_curtains_are_the_share_that_is_asked_for() -> None:
    experiment = bouncing(curtain_share=0.3)
    frames, curtains = experiment._videos(10, 7, 2, 0.3, 0)
    assert curtains.any((1, 2)).tolist() == [True] * 3 + [False] * 7
    np.testing.assert_array_equal(experiment._train, frames)
    assert (frames[np.broadcast_to(curtains[:, None], frames.shape)] == 0).all()
    open_frames = experiment._videos(10, 7, 2, 0.0, 0).frames
    hidden = open_frames != frames
    assert hidden.any()  # there was something behind it
    assert (hidden <= curtains[:, None]).all()


def test_splits_and_numbers_of_balls_have_videos_of_their_own() -> None:
    experiment = bouncing(frames=7, validation_videos=5)
    train, validation = experiment._train[:5], experiment._validation
    test = experiment.test_videos(2, curtain=False).frames
    assert not np.array_equal(train, validation)
    assert not np.array_equal(validation, test)
    assert test.shape == (5, 7, 8, 8)
    np.testing.assert_array_equal(test, experiment.test_videos(2, curtain=False).frames)
    more = experiment.test_videos(3, curtain=False).frames
    assert more.mean() > 1.2 * test.mean()


def test_roll_out_goes_on_from_its_own_frames() -> None:
    experiment = bouncing(context=4, rollout=3)
    video = torch.rand(7, 2, 64, generator=torch.Generator().manual_seed(0))
    model = Shift(0.5)
    told = experiment.roll_out(model, video)
    assert told.shape == (6, 2, 64)
    torch.testing.assert_close(told[:4], video[:4] / 2, atol=1e-5, rtol=1e-4)
    for ahead in (1, 2):
        expected = video[3] / 2 ** (1 + ahead)
        torch.testing.assert_close(told[3 + ahead], expected, atol=1e-5, rtol=1e-4)
    assert model.seen == [0, 4, 5]
    changed = video.clone()
    changed[4:] = 0.0  # what comes later is not looked at
    torch.testing.assert_close(experiment.roll_out(Shift(0.5), changed), told)
    torch.testing.assert_close(experiment.roll_out(Shift(0.5), video[:4]), told)


@pytest.mark.parametrize("told", [0, 1, 3, 6])
def test_loss_may_be_that_of_a_roll_out(told: int) -> None:
    experiment = bouncing(train_rollout=told)
    video = torch.rand(7, 2, 64, generator=torch.Generator().manual_seed(0))
    after = 7 - max(1, told)  # frames that are seen
    expected = [video[min(t, after - 1)] / 2 ** (1 + max(0, t - after + 1)) for t in range(6)]
    nats = F.binary_cross_entropy(torch.stack(expected), video[1:])
    loss = experiment.loss(Shift(0.5), video, torch.Generator())["loss"]
    torch.testing.assert_close(loss, nats, atol=1e-4, rtol=1e-4)
    found = experiment.evaluate(Shift(0.5))["validation_cross_entropy"]
    frames = experiment.as_input(experiment._validation)
    of_all = experiment.loss(Shift(0.5), frames, torch.Generator())["loss"]
    assert found == pytest.approx(float(of_all), rel=1e-5)


def test_roll_out_of_training_leaves_a_true_frame() -> None:
    bouncing(frames=7, train_rollout=6)
    with pytest.raises(ConfigError, match="below the 7 frames of a video; got 7"):
        bouncing(frames=7, train_rollout=7)


def test_errors_are_means_over_videos_frames_and_pixels() -> None:
    experiment = bouncing()
    frames = experiment.test_videos(3, curtain=True).frames
    still = np.repeat(frames[:, 3:4] / 255, 3, axis=1)
    expected = ((still - frames[:, 4:] / 255) ** 2).mean()
    found = experiment.test(Shift(1.0))
    assert found["rollout_3_curtain"] == pytest.approx(expected, rel=1e-4)
    assert found["first_3_curtain"] == found["rollout_3_curtain"]  # of three frames all are first
    before, after = frames[:, :-1] / 255, frames[:, 1:] / 255
    told = before.clip(1e-6, 1 - 1e-6)
    nats = -(after * np.log(told) + (1 - after) * np.log(1 - told)).mean()
    assert found["next_3_curtain"] == pytest.approx(nats, rel=1e-4)


def test_guesses_are_the_last_frame_and_the_mean_one() -> None:
    experiment = bouncing()
    found = experiment.test(Shift(1.0))
    last, mean = experiment._guesses["2 balls"]
    assert last == pytest.approx(found["rollout_2"], rel=1e-4)
    frames = experiment.test_videos(2, curtain=False).frames[:, 4:] / 255
    assert mean == pytest.approx(((frames - experiment._train.mean((0, 1)) / 255) ** 2).mean())
    assert f"2 balls {last:.4f} and {mean:.4f}" in experiment.notes[1]


def test_rows_say_what_was_trained() -> None:
    labels = [row.label for row in bouncing(curtain_share=0.0).rows][:4]
    assert labels == [
        "roll-out error over 3 frames, 2 balls (trained)",
        "roll-out error over 3 frames, 3 balls",
        "roll-out error over 3 frames, 2 balls, curtain",
        "roll-out error over 3 frames, 3 balls, curtain",
    ]
    assert "2 balls, curtain (trained)" in bouncing(curtain_share=1.0).rows[2].label
    assert "trained" not in bouncing(curtain_share=1.0).rows[0].label


def test_learns_where_balls_are(tmp_path: Path) -> None:
    settings = {**SMALL, "balls": 1, "test_balls": "1", "curtain_share": 0.0, "radius": 0.2}
    data = {"train_videos": 100, "batch_size": 10, "epochs": 6}
    results = fit(bouncing(model="gru", **{**settings, **data}), tmp_path)
    share = math.pi * 0.2**2
    blind = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert results.metrics["next_1"] < 0.75 * blind


def test_rollouts_are_drawn_of_every_core(rims: Rims, tmp_path: Path) -> None:
    for core in TWO_CORES:
        fit(bouncing(model=core, epochs=1), tmp_path / "here" / "root" / f"{core}-seed0")
    settings = options({**TINY, **DATA, "epochs": 1})
    call = ("experiment", "bouncing-balls", "--run-root", "root", *settings, "--report-only")
    call = (*call, "--cores", ",".join(TWO_CORES))
    assert rims(*call, "--show-rollout", "a.gif").code == 0
    assert rims(*call, "--show-rollout", "a.png").code == 0
    with Image.open(tmp_path / "here" / "a.gif") as moving:
        assert getattr(moving, "n_frames", 1) == 6  # all but the first, which nothing predicts
        size = moving.size
    with Image.open(tmp_path / "here" / "a.png") as strips:
        # Three columns each: true and two cores; the frames of the roll-out. Three videos are
        # three rows, or three for each.
        assert strips.size[0] == size[0]
        assert strips.size[1] > 9 * 80 > size[1] > 3 * 80
    told = assert_one_line(rims(*call, "--show-rollout", "a.mp4"))
    assert "--show-rollout must end in .gif or .png" in told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--batch-size", "9", "--train-videos", "8"), "--batch-size must not be above the 8"),
        (("--test-balls", "4,90"), "90 balls of radius 0.1 must find room"),
        (("--test-balls", "0"), "--test-balls must be whole numbers from 1 to 100"),
        (("--masses", "heavy"), "--masses"),
        (("--curtain-share", "1.5"), "--curtain-share must be in [0, 1]; got 1.5."),
    ],
)
def test_mistake_is_one_line_before_any_work(
    rims: Rims, tmp_path: Path, given: tuple[str, ...], told: str
) -> None:
    call = ("experiment", "bouncing-balls", "--run-root", "root", "--hidden-size", "6")
    assert told in assert_one_line(rims(*call, *given))
    assert not (tmp_path / "here" / "root").exists()

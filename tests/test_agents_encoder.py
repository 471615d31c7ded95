"""Observations become features: categories one-hot, direction and mission only on request."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.config import EncoderChoice
from agents.model.encoder import EncodedOnce, ObservationEncoder
from agents.model.observations import Observations, RepeatedObservations
from envs import (
    MISSION_LENGTH,
    STOCK_VIEW,
    BackendName,
    Observation,
    encode_mission,
    make_vector_env,
)
from rims import RepeatedInput
from tolerances import assert_near, rounding

CPU = torch.device("cpu")
HIDDEN_SIZE = 10

needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="EnvPool is not installed"
)
BACKENDS = [pytest.param("envpool", marks=needs_envpool), "gymnasium"]


def make_encoder(direction: bool = False, mission: bool = False) -> ObservationEncoder:
    torch.manual_seed(0)
    return ObservationEncoder(HIDDEN_SIZE, direction=direction, mission=mission)


def is_near(encoder: ObservationEncoder, first: Tensor, second: Tensor) -> bool:
    """Whether the features of two observations are the same; rows of a product may be rounded
    each in its own way."""
    bound = rounding(torch.float32, encoder.linear.in_features)
    return bool((first - second).abs().max() <= bound * first.abs().max())


def random_observations(*lead: int, missions: list[str] | None = None) -> Observations:
    rng = np.random.default_rng(0)
    view = np.stack([rng.integers(0, n, (*lead, 7, 7)) for n in STOCK_VIEW.categories], axis=-1)
    texts = missions or ["go to the red ball"]
    tokens = np.stack([encode_mission(texts[i % len(texts)]) for i in range(int(np.prod(lead)))])
    return Observations(
        torch.from_numpy(view.astype(np.uint8)),
        torch.from_numpy(rng.integers(0, 4, lead)),
        torch.from_numpy(tokens.reshape(*lead, MISSION_LENGTH)),
    )


def with_missions(*texts: str) -> Observations:
    """The same view for every environment; only the mission differs."""
    one = random_observations(1)
    tokens = np.stack([encode_mission(text) for text in texts])
    return Observations(
        one.image.expand(len(texts), 7, 7, 3),
        one.direction.expand(len(texts)),
        torch.from_numpy(tokens),
    )


def slow_features(image: Tensor) -> Tensor:
    """One view (7, 7, 3) as ones and zeros: cell by cell, channel by channel."""
    features: list[float] = []
    for row in image.tolist():
        for cell in row:
            for value, size in zip(cell, STOCK_VIEW.categories, strict=True):
                features += [1.0 if value == category else 0.0 for category in range(size)]
    return torch.tensor(features)


def test_view_is_one_hot() -> None:
    encoder = make_encoder()
    observations = random_observations(9)
    features = torch.stack([slow_features(image) for image in observations.image])
    assert features.shape == (9, encoder.linear.in_features)
    expected = encoder.linear(features).relu()
    assert torch.equal(encoder(observations), expected)


def test_direction_follows_the_view_one_hot() -> None:
    encoder = make_encoder(direction=True)
    observations = random_observations(9)
    rows = []
    for image, direction in zip(observations.image, observations.direction.tolist(), strict=True):
        compass = torch.tensor([float(direction == d) for d in range(4)])
        rows.append(torch.cat([slow_features(image), compass]))
    assert torch.equal(encoder(observations), encoder.linear(torch.stack(rows)).relu())


def test_view_holds_categories_not_magnitudes() -> None:
    """Before the ReLU, object 4 need not lie between objects 2 and 6."""
    encoder = make_encoder()
    views = random_observations(1).image.repeat(3, 1, 1, 1)
    for view, kind in zip(views, (2, 4, 6), strict=True):
        view[3, 3, 0] = kind
    observations = Observations(
        views, torch.zeros(3, dtype=torch.long), torch.zeros(3, MISSION_LENGTH, dtype=torch.long)
    )
    features = torch.stack([slow_features(image) for image in views])
    low, middle, high = encoder.linear(features)
    assert not torch.allclose(middle - low, high - middle, atol=1e-3)
    assert torch.equal(encoder(observations), torch.stack([low, middle, high]).relu())


@pytest.mark.parametrize("used", [False, True])
def test_direction_counts_only_if_asked(used: bool) -> None:
    encoder = make_encoder(direction=used)
    observations = random_observations(6)
    turned = observations._replace(direction=(observations.direction + 1) % 4)
    assert torch.equal(encoder(observations), encoder(turned)) is not used


@pytest.mark.parametrize("used", [False, True])
def test_mission_counts_only_if_asked(used: bool) -> None:
    encoder = make_encoder(mission=used)
    observations = with_missions("go to the red ball", "go to the blue ball")
    first, second = encoder(observations)
    assert is_near(encoder, first, second) is not used


@pytest.mark.parametrize(("direction", "mission"), [(False, False), (True, False), (True, True)])
def test_leading_shapes_are_kept(direction: bool, mission: bool) -> None:
    encoder = make_encoder(direction, mission)
    observations = random_observations(4, 3, missions=["open the door", "get a key", "go"])
    output = encoder(observations)
    assert output.shape == (4, 3, HIDDEN_SIZE)
    flat = encoder(Observations(*(part.flatten(0, 1) for part in observations)))
    assert is_near(encoder, output.flatten(0, 1), flat)
    for t in range(4):
        row = encoder(Observations(*(part[t] for part in observations)))
        assert is_near(encoder, output[t], row)


def test_features_are_of_the_parameters_type() -> None:
    encoder = make_encoder(direction=True, mission=True).double()
    assert encoder(random_observations(2)).dtype == torch.float64


# Missions ---------------------------------------------------------------------------------------


def read(encoder: ObservationEncoder, *texts: str) -> Tensor:
    features: Tensor = encoder(with_missions(*texts))
    return features


def test_equal_missions_have_equal_features_and_others_differ() -> None:
    texts = ["open the red door", "get a key", "open the red door", "open the red box", "get a key"]
    encoder = make_encoder(mission=True)
    features = read(encoder, *texts)
    for i, first in enumerate(texts):
        for j, second in enumerate(texts):
            assert is_near(encoder, features[i], features[j]) is (first == second)


def test_order_of_words_matters() -> None:
    first, second = read(make_encoder(mission=True), "red ball blue key", "blue ball red key")
    assert not torch.allclose(first, second, atol=1e-4)


def test_missions_beside_it_do_not_matter() -> None:
    encoder = make_encoder(mission=True)
    alone = read(encoder, "get a key")[0]
    long = "pick up the red ball, then go to the green box behind you and open the yellow door"
    beside = read(encoder, "get a key", long, "go")[0]
    assert is_near(encoder, alone, beside)  # the recurrent reader runs on for the longer one


def test_length_of_the_padding_does_not_matter() -> None:
    encoder = make_encoder(mission=True)
    observations = with_missions("get a key", "go to the red ball")
    short = observations._replace(mission=observations.mission[:, :5])
    assert is_near(encoder, encoder(observations), encoder(short))


def test_mission_of_no_words_is_read() -> None:
    features = read(make_encoder(mission=True), "", "get a key")
    assert bool(features.isfinite().all())
    assert not torch.equal(features[0], features[1])


def test_padding_is_no_word_and_is_not_learned() -> None:
    encoder = make_encoder(mission=True)
    read(encoder, "get a key", "go to the red ball").sum().backward()  # type: ignore[no-untyped-call]
    gradient = encoder.words.weight.grad
    assert gradient is not None
    assert bool((encoder.words.weight[0] == 0).all())
    assert bool((gradient[0] == 0).all())
    assert bool((gradient != 0).any())


# Real observations ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "task",
    [
        "MiniGrid-DoorKey-5x5-v0",
        "MiniGrid-LavaGapS5-v0",
        "MiniGrid-Dynamic-Obstacles-5x5-v0",
        "BabyAI-GoToObjMaze-v0",
        "MiniGrid-KeyCorridorS3R1-v0",
    ],
)
def test_categories_of_real_views_fit(task: str, backend: BackendName) -> None:
    """A category too large would be taken for one of the next channel."""
    rng = np.random.default_rng(0)
    largest = np.zeros(3, dtype=np.int64)
    with make_vector_env(task, 8, 0, backend) as env:
        env.reset()
        for _ in range(60):
            image = env.step(rng.integers(0, env.num_actions, 8)).observation.image
            largest = np.maximum(largest, image.max(axis=(0, 1, 2)))
    assert bool((largest < STOCK_VIEW.categories).all())
    assert largest[0] >= 2  # a wall was seen


def test_from_numpy_keeps_values_and_types() -> None:
    with make_vector_env("BabyAI-GoToRedBall-v0", 3, 0, "gymnasium") as env:
        source = env.reset()
    tensors = Observations.from_numpy(source, CPU)
    assert isinstance(source, Observation)
    for part, expected in zip(tensors, source, strict=True):
        assert np.array_equal(part.numpy(), np.asarray(expected))
    assert tensors.image.dtype == torch.uint8
    assert tensors.mission.dtype == torch.int64


def test_stack_puts_time_first() -> None:
    steps = [random_observations(4), random_observations(4)._replace(direction=torch.arange(4))]
    stacked = Observations.stack(steps)
    assert stacked.image.shape == (2, 4, 7, 7, 3)
    assert stacked.direction[1].tolist() == [0, 1, 2, 3]
    assert torch.equal(stacked.image[0], steps[0].image)


# Observations kept once -------------------------------------------------------------------------


def repeating(num_steps: int = 6, num_envs: int = 5) -> Observations:
    """Few views, directions and missions, so that some observations are alike in all of them."""
    views = random_observations(2, missions=["get a key", "go to the red ball"])
    chosen = torch.randint(2, (3, num_steps, num_envs))
    return Observations(
        views.image[chosen[0]],
        chosen[1] + 2,
        views.mission[chosen[2]].reshape(*chosen[2].shape, -1),
    )


def test_repeated_observations_are_those_they_were_made_of() -> None:
    observations = repeating()
    repeated = RepeatedObservations.of(observations)
    for part, kept in zip(observations, repeated.distinct, strict=True):
        assert torch.equal(kept[repeated.place], part)
        assert kept.dtype == part.dtype
    keys = {
        tuple(torch.cat([p.flatten() for p in row]).tolist())
        for row in zip(*repeated.distinct, strict=True)
    }
    assert len(keys) == len(repeated.distinct.direction) <= 8  # none of them twice


def test_environments_keep_only_what_they_see() -> None:
    observations = repeating()
    observations.direction[:, 3] = 0  # only environment 3 looks there
    repeated = RepeatedObservations.of(observations)
    index = torch.tensor([4, 1])
    chosen = repeated.envs(index)
    assert torch.equal(chosen.distinct.image[chosen.place], observations.image[:, index])
    assert torch.equal(chosen.distinct.direction[chosen.place], observations.direction[:, index])
    assert 0 not in chosen.distinct.direction
    assert 0 in repeated.distinct.direction


def test_encoding_distinct_observations_equals_encoding_all() -> None:
    encoder = make_encoder(direction=True, mission=True).double()
    observations = repeating()
    weight = torch.randn(6, 5, encoder.linear.out_features, dtype=torch.float64)
    gradients = []
    for form in (observations, RepeatedObservations.of(observations)):
        encoder.zero_grad()
        encoded = encoder(form)
        output = encoded.expand() if isinstance(encoded, RepeatedInput) else encoded
        (output * weight).sum().backward()
        grads = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
        assert len(grads) == len(list(encoder.parameters()))
        gradients.append([output.detach(), *grads])
    for one, other in zip(*gradients, strict=True):
        assert_near(one, other)


def test_encoded_once_is_what_the_encoder_says_and_asks_it_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = make_encoder(direction=True, mission=True).double()
    observations = repeating()
    steps = [Observations(*(part[t] for part in observations)) for t in range(6)]
    expected = [encoder(step) for step in steps]
    asked = 0
    encode = encoder.forward

    def count(step: Observations) -> Tensor:
        nonlocal asked
        asked += len(step.direction)
        return encode(step)

    monkeypatch.setattr(encoder, "forward", count)
    once = EncodedOnce(encoder)
    for step, features in zip(steps, expected, strict=True):
        assert_near(once(step), features)
    assert asked == len(RepeatedObservations.of(observations).distinct.direction)


# --- convolutions, with and without NFM


def conv_encoder(kind: EncoderChoice) -> ObservationEncoder:
    torch.manual_seed(0)
    return ObservationEncoder(HIDDEN_SIZE, kind=kind, direction=True, mission=True)


@pytest.mark.parametrize("kind", ["cnn", "nfm"])
def test_convolutions_see_the_view_as_a_map(kind: EncoderChoice) -> None:
    """A cell moved by one is a map moved by one: what lies where is kept."""
    encoder = conv_encoder(kind)
    assert encoder.maps is not None
    seen: list[Tensor] = []
    encoder.maps.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    observations = random_observations(3)
    encoder(observations)
    image = observations.image.long()
    parts = [
        torch.nn.functional.one_hot(image[..., i], n) for i, n in enumerate(STOCK_VIEW.categories)
    ]
    expected = torch.cat(parts, dim=-1).permute(0, 3, 1, 2).float()  # (3, 21, 7, 7)
    assert torch.equal(seen[0], expected)


def test_an_nfm_encoder_starts_as_the_same_convolutions_and_then_differs() -> None:
    plain, modular = conv_encoder("cnn"), conv_encoder("nfm")
    weights = {
        name.replace("maps.stacks.1.", "maps."): value
        for name, value in modular.state_dict().items()
        if ".nfms." not in name and ".stacks.0." not in name
    }
    plain.load_state_dict(weights)
    observations = random_observations(4)
    torch.testing.assert_close(plain(observations), modular(observations), rtol=0, atol=0)
    gammas = [p for name, p in modular.named_parameters() if name.endswith("gamma")]
    assert len(gammas) == 5  # the last of the first pass would read for nobody
    for gamma in gammas:
        torch.nn.init.constant_(gamma, 0.5)
    assert not torch.allclose(plain(observations), modular(observations))
    modular(observations).sum().backward()
    assert all(p.grad is not None for p in modular.parameters())


@pytest.mark.parametrize("kind", ["cnn", "nfm"])
def test_repeated_observations_go_through_convolutions_once(kind: EncoderChoice) -> None:
    encoder = conv_encoder(kind)
    observations = random_observations(2, 3)
    twice = Observations(*(torch.cat([part, part]) for part in observations))
    repeated = RepeatedObservations.of(twice)
    assert len(repeated.distinct.image) == 6
    encoded = encoder(repeated)
    torch.testing.assert_close(encoded.rows[encoded.place], encoder(twice))

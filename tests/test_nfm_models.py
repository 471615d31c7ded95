"""Every network of nfm.models with and without NFM: shapes, equality at the start, gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from nfm.models import (
    ATARI_NFM,
    CIFAR_NFM,
    CNN_MLP,
    GAN_NFM,
    SORT_OF_CLEVR_NFM,
    STACKED_MNIST_NFM,
    VAE,
    VAE_NFM,
    AtariEncoder,
    AtariIQN,
    Discriminator,
    Generator,
    NoisyLinear,
    PreActBlock,
    PreActBottleneck,
    PreActResNet,
    RelationNetwork,
    StackedCNN,
    parameter_table,
    preact_resnet18,
    preact_resnet34,
    preact_resnet50,
)
from nfm.module import NFM
from nfm.network import NFMOptions


class Case(NamedTuple):
    """A network small enough for tests."""

    build: Callable[[NFMOptions | None], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    outputs: tuple[tuple[int, ...], ...]
    preset: NFMOptions
    places: int


def images(*shape: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (torch.rand(shape),)


def images_and_questions() -> tuple[Any, ...]:
    return torch.rand(2, 3, 75, 75), torch.rand(2, 3, 11)


CASES = {
    "basic blocks": Case(
        lambda nfm: PreActResNet(PreActBlock, (1, 2, 1, 1), 7, planes=3, in_channels=2, nfm=nfm),
        images(2, 2, 16, 16),
        ((2, 7),),
        CIFAR_NFM,
        places=4,
    ),
    "bottlenecks": Case(
        lambda nfm: PreActResNet(PreActBottleneck, (2, 1), 7, planes=2, nfm=nfm),
        images(2, 3, 9, 9),
        ((2, 7),),
        CIFAR_NFM,
        places=2,
    ),
    "stacked": Case(
        lambda nfm: StackedCNN(width=2, nfm=nfm),
        images(2, 1, 64, 64),
        ((2, 10),),
        STACKED_MNIST_NFM,
        places=4,
    ),
    "stacked, flat": Case(
        lambda nfm: StackedCNN(num_classes=3, width=2, image_size=33, pool="none", nfm=nfm),
        images(2, 1, 33, 33),
        ((2, 3),),
        STACKED_MNIST_NFM,
        places=4,
    ),
    "MLP": Case(
        lambda nfm: CNN_MLP(channels=5, hidden=7, nfm=nfm),
        images_and_questions,
        ((2, 3, 10),),
        SORT_OF_CLEVR_NFM,
        places=4,
    ),
    "relations": Case(
        lambda nfm: RelationNetwork(channels=5, hidden=7, nfm=nfm),
        images_and_questions,
        ((2, 3, 10),),
        SORT_OF_CLEVR_NFM,
        places=4,
    ),
    "generator 32": Case(
        lambda nfm: Generator(latent_size=7, width=3, image_channels=1, nfm=nfm),
        lambda: (torch.randn(2, 7),),
        ((2, 1, 32, 32),),
        GAN_NFM,
        places=4,
    ),
    "generator 64": Case(
        lambda nfm: Generator(64, latent_size=7, width=16, nfm=nfm),
        lambda: (torch.randn(2, 7),),
        ((2, 3, 64, 64),),
        GAN_NFM,
        places=5,
    ),
    "VAE": Case(
        lambda nfm: VAE(image_size=12, width=3, stages=2, latent_size=5, nfm=nfm),
        images(2, 1, 12, 12),
        ((2, 1, 12, 12), (2, 5), (2, 5)),
        VAE_NFM,
        places=2,
    ),
    "Gaussian VAE": Case(
        lambda nfm: VAE(
            image_size=8, image_channels=3, width=2, latent_size=5, likelihood="gaussian", nfm=nfm
        ),
        images(2, 3, 8, 8),
        ((2, 3, 8, 8), (2, 5), (2, 5), ()),
        VAE_NFM,
        places=3,
    ),
    "Atari": Case(
        lambda nfm: AtariIQN(6, width=2, hidden=7, nfm=nfm),
        lambda: (torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8), 5),
        ((2, 5, 6), (2, 5)),
        ATARI_NFM,
        places=2,
    ),
}

each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def tensors(output: Tensor | Iterable[Tensor | None]) -> list[Tensor]:
    """What a network returned, as a flat list."""
    given = [output] if isinstance(output, Tensor) else output
    return [tensor for tensor in given if tensor is not None]


def run(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Call with the same random numbers each time."""
    generator = torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, NoisyLinear):
            module.resample(generator=generator)
    return tensors(model(*inputs))


def plain_state(model: nn.Module, passes: int) -> dict[str, Tensor]:
    """Of a network with NFM, what the plain one has: the modules of the last pass, and the rest."""
    last = f"trunk.stacks.{passes - 1}."
    return {
        name.replace(last, "trunk."): value
        for name, value in model.state_dict().items()
        if "trunk." not in name or last in name
    }


def open_gates(model: nn.Module) -> None:
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, NFM) and layer.reads:
                layer.gamma.fill_(0.5)


@each
@pytest.mark.parametrize("with_nfm", [False, True])
def test_output_has_its_shape(case: Case, with_nfm: bool) -> None:
    model = case.build(case.preset if with_nfm else None)
    assert tuple(tuple(t.shape) for t in tensors(model(*case.inputs()))) == case.outputs


@each
@pytest.mark.parametrize("training", [False, True])
def test_at_the_start_equals_the_plain_network(case: Case, training: bool) -> None:
    plain, modular = case.build(None).train(training), case.build(case.preset).train(training)
    with torch.no_grad():
        for name, parameter in modular.named_parameters():
            if "stacks.0." in name:  # else the copies of both passes would be the same
                parameter.add_(torch.randn_like(parameter))
    plain.load_state_dict(plain_state(modular, passes=2))
    inputs = case.inputs()
    for expected, actual in zip(run(plain, inputs), run(modular, inputs), strict=True):
        assert torch.equal(actual, expected)


@each
def test_with_open_gates_differs_from_the_plain_network(case: Case) -> None:
    model = case.build(case.preset).eval()
    inputs = case.inputs()
    before = run(model, inputs)
    open_gates(model)
    assert not torch.equal(run(model, inputs)[0], before[0])


@each
def test_gradients_reach_every_parameter(case: Case) -> None:
    model = case.build(case.preset)
    open_gates(model)
    sum(t.square().sum() for t in tensors(model(*case.inputs()))).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    first_pass = [p.grad for name, p in model.named_parameters() if "stacks.0." in name]
    assert any(gradient is not None and gradient.any() for gradient in first_pass)


@each
@pytest.mark.parametrize(
    "options",
    [
        {"passes": 1},
        {"passes": 3, "top_k": None},
        {"share": True},
        {"read": (False, True)},
        {"topk_rule": "threshold", "rescale": "nearest", "null_slot": False, "out_kernel_size": 1},
    ],
    ids=["one pass", "three passes", "shared", "writes first", "authors' rules"],
)
def test_options_of_the_core_are_taken(case: Case, options: NFMOptions) -> None:
    model = case.build(options)
    open_gates(model)
    assert tuple(tuple(t.shape) for t in tensors(model(*case.inputs()))) == case.outputs


@each
def test_paper_settings_have_the_number_of_layers_of_the_paper(case: Case) -> None:
    row = parameter_table({"": case.build(case.preset)})[0]
    assert row.nfm_layers == 2 * case.places


@each
def test_table_counts_every_number_once(case: Case) -> None:
    plain, modular, shared = parameter_table(
        {
            "plain": case.build(None),
            "NFM": case.build(case.preset),
            "shared": case.build({**case.preset, "share": True}),
        }
    )
    assert (plain.name, plain.in_nfm, plain.nfm_layers) == ("plain", 0, 0)
    assert shared.total == plain.total + shared.in_nfm
    # Two passes of their own, in the first of which the last place only writes.
    assert shared.in_nfm < modular.in_nfm < 2 * shared.in_nfm
    assert plain.total < modular.total - modular.in_nfm < 2 * plain.total


@pytest.mark.parametrize(
    ("build", "parameters"),
    # 11.17, 21.28 and 23.51 million for ten classes, as usually given.
    [(preact_resnet18, 11_172_170), (preact_resnet34, 21_280_330), (preact_resnet50, 23_513_162)],
)
def test_preact_resnets_have_their_known_sizes(
    build: Callable[..., PreActResNet], parameters: int
) -> None:
    with torch.device("meta"):
        assert parameter_table({"": build(10)})[0].total == parameters


def test_widths_scale() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in preact_resnet18(10, planes=12).parameters()) < 500_000
        convolutions = [m for m in StackedCNN().modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [32, 64, 64, 128, 128, 256, 256, 512, 512]
    assert [c.stride[0] for c in convolutions] == [1, 2, 1, 2, 1, 2, 1, 2, 1]


@pytest.mark.parametrize(("size", "local"), [(32, (8, 8)), (64, (4, 4))])
@pytest.mark.parametrize("image_channels", [1, 3])
def test_discriminator_has_scores_and_features(
    size: int, local: tuple[int, int], image_channels: int
) -> None:
    model = Discriminator(size, width=16, image_channels=image_channels, projection_size=7)
    score, features = model(torch.rand(2, image_channels, size, size))
    assert score.shape == (2,)
    projected = model.project(features)
    assert projected.local.shape == (2, 7, *local)
    assert projected.whole.shape == (2, 7)
    (score.sum() + projected.local.sum() + projected.whole.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_discriminator_is_normalised() -> None:
    torch.manual_seed(0)
    model = Discriminator(width=8, projection_size=7)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            for _ in range(100):  # one power iteration each, in training
                _ = module.weight
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            norm = torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2)
            torch.testing.assert_close(norm, torch.ones(()), rtol=0.05, atol=0)


def test_atari_bytes_and_fractions_are_the_same() -> None:
    encoder = AtariEncoder(width=1).double()
    frames = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)
    torch.testing.assert_close(encoder(frames), encoder(frames.double() / 255))


def test_samples_repeat_by_seed() -> None:
    for model in (
        Generator(latent_size=5, width=2).eval(),
        VAE(image_size=8, width=2, latent_size=5).eval(),
        VAE(image_size=8, width=2, latent_size=5, likelihood="gaussian").eval(),
    ):
        first, second = (model.sample(3, generator=torch.manual_seed(7)) for _ in range(2))
        assert torch.equal(first, second)
    assert first.min() >= 0
    assert first.max() <= 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Generator(48), "image_size must be 32 or 64; got 48"),
        (lambda: Generator(64, width=24), "width must be a multiple of 16"),
        (lambda: Discriminator(16), "image_size must be 32 or 64; got 16"),
        (lambda: VAE(image_size=28), "got image_size=28, stages=3"),
        (lambda: VAE(likelihood="poisson"), "got 'poisson'"),  # type: ignore[arg-type]
        (lambda: StackedCNN(pool="max"), "got 'max'"),  # type: ignore[arg-type]
        (lambda: PreActResNet(PreActBlock, (), 10), "at least one stage"),
    ],
)
def test_mistakes_are_named(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()

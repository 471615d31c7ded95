"""Losses and shortcuts of nfm.models against the naive way of computing the same."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nfm.models import (
    CNN_MLP,
    SORT_OF_CLEVR_NFM,
    VAE,
    IQNHead,
    NoisyLinear,
    RelationNetwork,
    VAEOutput,
    elbo,
    hinge_discriminator_loss,
    hinge_generator_loss,
    infomax_loss,
    quantile_huber_loss,
    relational,
    reparameterise,
)

#: Double precision over sums of some hundred terms of order one.
assert_near = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
randn = partial(torch.randn, dtype=torch.float64)


def test_relation_network_equals_vectors_of_pairs() -> None:
    model = RelationNetwork(channels=5, hidden=7, nfm=SORT_OF_CLEVR_NFM).double().eval()
    images, questions = randn(2, 3, 75, 75), randn(2, 3, 11)
    objects = model.objects(images)
    assert objects.shape == (2, 25, 7)
    for b in range(2):
        for q in range(3):
            total = torch.zeros(7, dtype=torch.float64)
            for i in range(25):
                for j in range(25):
                    pair = torch.cat([objects[b, i], objects[b, j], questions[b, q]])
                    total = total + model.others(F.relu(model.first(pair)))
            expected = model.head(F.relu(model.relation(total)))
            assert_near(model(images, questions)[b, q], expected)


def test_relation_network_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = RelationNetwork(channels=5, hidden=7).double().eval()
    images, questions = randn(3, 3, 75, 75), randn(3, 2, 11)
    at_once = model(images, questions)
    monkeypatch.setattr(relational, "_NUMBERS_AT_ONCE", 2 * 2 * 25**2 * 7)  # two images, then one
    assert_near(model(images, questions), at_once)


def test_relation_network_sees_rows_and_columns() -> None:
    objects = RelationNetwork(channels=5).objects(torch.rand(1, 3, 75, 75))
    places = [((i // 5 - 2) / 2, (i % 5 - 2) / 2) for i in range(25)]
    assert objects[0, :, 5:].tolist() == [list(place) for place in places]


def test_mlp_equals_joined_features() -> None:
    model = CNN_MLP(channels=5, hidden=7).double().eval()
    images, questions = randn(2, 3, 75, 75), randn(2, 3, 11)
    flat = model.trunk(images).flatten(1)
    for q in range(3):
        joined = torch.cat([flat, questions[:, q]], 1)
        expected = model.head(F.relu(model.hidden(joined)))
        assert_near(model(images, questions)[:, q], expected)


@pytest.mark.parametrize("kind", [CNN_MLP, RelationNetwork])
def test_answers_use_positions_and_repeat_in_evaluation(
    kind: type[CNN_MLP] | type[RelationNetwork],
) -> None:
    torch.manual_seed(0)
    model = kind(channels=5, hidden=64).eval()  # of few, all rectifiers can be at zero
    images, questions = torch.zeros(2, 3, 75, 75), torch.ones(2, 1, 11)
    images[0, :, 10:20, 10:20] = 1
    images[1, :, 42:52, 58:68] = 1  # moved by a multiple of the trunk's stride
    logits = model(images, questions)
    assert torch.equal(logits, model(images, questions))
    assert (logits[0] - logits[1]).abs().max() > 1e-4


def naive_infomax(local: Tensor, whole: Tensor) -> Tensor:
    batch, positions = local.shape[0], local.flatten(2).shape[2]
    features = local.flatten(2)
    losses = []
    for b in range(batch):
        negatives = [
            (features[c, :, q] @ whole[b]).exp()
            for c in range(batch)
            if c != b
            for q in range(positions)
        ]
        for p in range(positions):
            positive = (features[b, :, p] @ whole[b]).exp()
            losses.append(-(positive / (positive + sum(negatives))).log())
    return torch.stack(losses).mean()


def test_infomax_loss_equals_a_loop() -> None:
    local, whole = randn(3, 5, 2, 7), randn(3, 5)
    assert_near(infomax_loss(local, whole), naive_infomax(local, whole))


def test_infomax_loss_has_finite_gradients_and_is_zero_alone() -> None:
    local, whole = randn(3, 5, 2, 2).requires_grad_(), (100 * randn(3, 5)).requires_grad_()
    infomax_loss(local, whole).backward()  # type: ignore[no-untyped-call]
    assert local.grad is not None
    assert whole.grad is not None
    assert local.grad.isfinite().all()
    assert whole.grad.isfinite().all()
    alone = randn(1, 5, 2, 2).requires_grad_()
    loss = infomax_loss(alone, randn(1, 5))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert alone.grad is not None
    assert not alone.grad.any()


def test_infomax_loss_names_shapes_that_do_not_agree() -> None:
    with pytest.raises(ValueError, match=r"must be \(3, 5\).*got \(3, 7\)"):
        infomax_loss(torch.zeros(3, 5, 2, 2), torch.zeros(3, 7))


def test_hinge_losses_equal_their_definition() -> None:
    real, fake = randn(11), randn(13)
    expected = sum(max(0.0, 1 - r) for r in real.tolist()) / 11
    expected += sum(max(0.0, 1 + f) for f in fake.tolist()) / 13
    assert math.isclose(hinge_discriminator_loss(real, fake).item(), expected, rel_tol=1e-12)
    assert math.isclose(hinge_generator_loss(fake).item(), -sum(fake.tolist()) / 13, rel_tol=1e-9)


@pytest.mark.parametrize("kappa", [0.3, 1.0, 2.0])
def test_quantile_huber_loss_equals_a_loop(kappa: float) -> None:
    quantiles, targets = 2 * randn(3, 5), 2 * randn(3, 7)
    taus = torch.rand(3, 5, dtype=torch.float64)
    loss = quantile_huber_loss(quantiles, taus, targets, kappa=kappa)
    for b in range(3):
        expected = 0.0
        for i in range(5):
            for j in range(7):
                delta = targets[b, j].item() - quantiles[b, i].item()
                small = abs(delta) <= kappa
                huber = delta**2 / 2 if small else kappa * (abs(delta) - kappa / 2)
                expected += abs(taus[b, i].item() - (delta < 0)) * huber / kappa / 7
        assert math.isclose(loss[b].item(), expected, rel_tol=1e-12)


def test_quantile_huber_loss_is_least_at_the_quantiles() -> None:
    targets = torch.arange(0, 100, dtype=torch.float64).unsqueeze(0)
    taus = torch.tensor([[0.1, 0.5, 0.9]], dtype=torch.float64)
    quantiles = torch.full((1, 3), 50.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([quantiles], lr=5.0)
    for _ in range(400):
        optimizer.zero_grad()
        quantile_huber_loss(quantiles, taus, targets).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    # Between two targets the loss is nearly flat: a step of the targets is what can be told.
    torch.testing.assert_close(quantiles.detach() / 100, taus, rtol=0, atol=0.02)


def test_quantile_huber_loss_has_no_gradient_into_targets() -> None:
    targets = randn(3, 7).requires_grad_()
    quantiles = randn(3, 5).requires_grad_()
    quantile_huber_loss(quantiles, torch.rand(3, 5, dtype=torch.float64), targets).sum().backward()  # type: ignore[no-untyped-call]
    assert targets.grad is None
    assert quantiles.grad is not None
    with pytest.raises(ValueError, match="kappa must be above 0; got 0"):
        quantile_huber_loss(quantiles, quantiles, targets, kappa=0)


def test_noisy_linear_equals_a_layer_of_noisy_weights() -> None:
    layer = NoisyLinear(3, 5).double()
    layer.resample(generator=torch.manual_seed(3))
    x = randn(2, 3)
    weight = layer.weight + layer.weight_sigma * torch.outer(layer.output_noise, layer.input_noise)
    bias = layer.bias + layer.bias_sigma * layer.output_noise
    assert_near(layer(x), F.linear(x, weight, bias))
    before = layer(x)
    assert torch.equal(layer(x), before)
    layer.resample()
    assert not torch.equal(layer(x), before)
    assert_near(layer.eval()(x), F.linear(x, layer.weight, layer.bias))


def test_noise_has_unit_variance_of_its_products() -> None:
    layer = NoisyLinear(400, 400)
    products = torch.outer(layer.output_noise, layer.input_noise)
    # E f(e)^2 = E|e| = sqrt(2 / pi) per factor; 400 draws of each tell it to a tenth.
    torch.testing.assert_close(products.square().mean().item(), 2 / math.pi, rtol=0.2, atol=0)


def test_iqn_head_embeds_fractions_as_the_paper_says() -> None:
    head = IQNHead(7, 3, hidden=5, num_cosines=11, noisy=False).double()
    features, taus = randn(2, 7), torch.rand(2, 13, dtype=torch.float64)
    quantiles = head.at(features, taus)
    for b in range(2):
        for n in range(13):
            cosines = [math.cos(math.pi * i * taus[b, n].item()) for i in range(11)]
            phi = F.relu(head.embedding(torch.tensor(cosines, dtype=torch.float64)))
            joined = features[b] * phi
            advantage = head.advantage(joined)
            expected = head.value(joined) + advantage - advantage.mean()
            assert_near(quantiles[b, n], expected)


def test_iqn_head_draws_fractions_from_the_generator() -> None:
    head = IQNHead(7, 3, hidden=5)
    first, second = (head(torch.ones(2, 7), 5, generator=torch.manual_seed(3)) for _ in range(2))
    assert torch.equal(first.quantiles, second.quantiles)
    assert torch.equal(first.taus, second.taus)
    before = first.quantiles
    head.resample()
    assert not torch.equal(head.at(torch.ones(2, 7), first.taus), before)
    assert not any(isinstance(m, NoisyLinear) for m in IQNHead(7, 3, noisy=False).modules())


def test_elbo_equals_distributions_of_torch() -> None:
    mean, log_variance = randn(3, 5), randn(3, 5)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), 1.0)
    kl = torch.distributions.kl_divergence(posterior, prior).sum(1)
    images, decoded = torch.rand(3, 2, 4, 4, dtype=torch.float64), randn(3, 2, 4, 4)

    terms = elbo(images, VAEOutput(decoded, mean, log_variance, None))
    # for pixels between black and white it is defined, but torch calls them invalid
    bernoulli: Any = torch.distributions.Bernoulli(logits=decoded, validate_args=False)
    assert_near(terms.kl, kl)
    assert_near(terms.reconstruction, -bernoulli.log_prob(images).flatten(1).sum(1))
    assert_near(terms.loss, (terms.reconstruction + kl).mean())

    log_scale = torch.tensor(-0.7, dtype=torch.float64)
    gaussian: Any = torch.distributions.Normal(decoded, log_scale.exp())
    terms = elbo(images, VAEOutput(decoded, mean, log_variance, log_scale))
    assert_near(terms.reconstruction, -gaussian.log_prob(images).flatten(1).sum(1))


def test_reparameterised_samples_have_their_moments_and_gradients() -> None:
    mean = torch.full((20_000,), 2.0, requires_grad=True)
    log_variance = torch.full((20_000,), math.log(9.0), requires_grad=True)
    sample = reparameterise(mean, log_variance, generator=torch.manual_seed(3))
    # standard errors: 3 / sqrt(20000) = 0.02 of the mean, 0.015 of the deviation
    torch.testing.assert_close(sample.mean().item(), 2.0, rtol=0, atol=0.1)
    torch.testing.assert_close(sample.std().item(), 3.0, rtol=0, atol=0.1)
    sample.sum().backward()  # type: ignore[no-untyped-call]
    assert mean.grad is not None
    assert mean.grad.eq(1).all()
    assert log_variance.grad is not None
    assert log_variance.grad.any()


def test_vae_in_evaluation_still_samples() -> None:
    model = VAE(image_size=8, width=2, latent_size=5).eval()
    images = torch.rand(2, 1, 8, 8)
    assert not torch.equal(model(images).decoded, model(images).decoded)
    seeded = [model(images, generator=torch.manual_seed(3)).decoded for _ in range(2)]
    assert torch.equal(*seeded)

"""Coefficients of the prediction types against their published definitions."""

import math

import pytest
import torch

from textinv_core.errors import UserError
from textinv_core.noise import NoiseSchedule

# SD's own: `scaled_linear` betas.
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
SIGMAS = ((1 - torch.cumprod(1 - BETAS, 0)) / torch.cumprod(1 - BETAS, 0)) ** 0.5
FLOW_SIGMAS = torch.linspace(0.001, 1, 1000, dtype=torch.float64)  # the last is noise alone
ONES = torch.ones_like(SIGMAS)

SCHEDULES = {
    "eps": NoiseSchedule(ONES, SIGMAS, ONES, -SIGMAS),
    "v": NoiseSchedule(ONES, SIGMAS, 1 / (SIGMAS**2 + 1), -SIGMAS / (SIGMAS**2 + 1).sqrt()),
    "flow": NoiseSchedule(1 - FLOW_SIGMAS, FLOW_SIGMAS, ONES, -FLOW_SIGMAS),
}

# As many of each, so that coefficients put along a wrong dimension give wrong numbers rather than an error.
SHAPE = (4, 4, 4, 4)
T = torch.tensor([0, 80, 700, 999])


def latent_and_gaussian(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *SHAPE, generator=generator, dtype=dtype).unbind()


def per_sample(values):
    return torch.tensor(values, dtype=torch.float64).reshape(4, 1, 1, 1)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_noise_is_added_per_sample():
    latent, gaussian = latent_and_gaussian()
    sigmas = per_sample([SIGMAS[t] for t in T])
    close(SCHEDULES["eps"].add_noise(latent, gaussian, T), latent + sigmas * gaussian)
    close(SCHEDULES["v"].add_noise(latent, gaussian, T), latent + sigmas * gaussian)
    sigmas = per_sample([FLOW_SIGMAS[t] for t in T])
    close(SCHEDULES["flow"].add_noise(latent, gaussian, T), (1 - sigmas) * latent + sigmas * gaussian)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_eps_target_is_the_gaussian_to_the_bit(dtype):
    latent, gaussian = latent_and_gaussian(dtype)
    every_t = torch.arange(1000)
    for t in every_t.split(4):
        assert torch.equal(SCHEDULES["eps"].target(1000 * latent, gaussian, t), gaussian)


def test_a_v_target_is_the_velocity():
    latent, gaussian = latent_and_gaussian()
    # Salimans & Ho 2022: v = alpha * eps - sigma * x, with alpha^2 + sigma^2 = 1.
    alpha = per_sample([math.sqrt(torch.cumprod(1 - BETAS, 0)[t]) for t in T])
    close(SCHEDULES["v"].target(latent, gaussian, T), alpha * gaussian - (1 - alpha**2).sqrt() * latent)


def test_a_flow_target_leads_from_picture_to_noise():
    latent, gaussian = latent_and_gaussian()
    close(SCHEDULES["flow"].target(latent, gaussian, T), gaussian - latent)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_prediction_behind_a_denoised_picture(kind):
    schedule = SCHEDULES[kind]
    latent, gaussian = latent_and_gaussian()
    noisy = schedule.add_noise(latent, gaussian, T)
    prediction = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    skip, out = (per_sample([coefficients[t] for t in T]) for coefficients in (schedule.skip, schedule.out))
    close(schedule.prediction(skip * noisy + out * prediction, noisy, T), prediction)
    # What denoises perfectly is the target, so the two forms agree.
    close(schedule.prediction(latent, noisy, T), schedule.target(latent, gaussian, T))


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_the_papers(gamma):
    alphas = torch.cumprod(1 - BETAS, 0)
    snr = alphas / (1 - alphas)
    capped = snr.clamp(max=gamma)
    assert (snr > gamma).any() and (snr < gamma).any()
    t = torch.arange(1000)
    close(SCHEDULES["eps"].min_snr_weight(t, gamma), capped / snr)
    close(SCHEDULES["v"].min_snr_weight(t, gamma), capped / (snr + 1))
    flow_snr = ((1 - FLOW_SIGMAS) / FLOW_SIGMAS) ** 2
    # x0 = noisy - sigma * prediction: an error in it is sigma times one in the prediction.
    close(SCHEDULES["flow"].min_snr_weight(t, gamma), flow_snr.clamp(max=gamma) * FLOW_SIGMAS**2)


def test_min_snr_weights_follow_t():
    weights = SCHEDULES["v"].min_snr_weight(torch.arange(1000), 5.0)
    assert torch.equal(SCHEDULES["v"].min_snr_weight(T.flip(0), 5.0), weights[T.flip(0)])


def test_length():
    assert len(SCHEDULES["eps"]) == 1000


@pytest.mark.parametrize("field", ["signal", "noise", "skip", "out"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_coefficients_that_are_not_finite_are_refused(field, value):
    coefficients = {name: torch.ones(3, dtype=torch.float64) for name in ("signal", "noise", "skip", "out")}
    coefficients[field][1] = value
    with pytest.raises(UserError, match="cannot be trained"):
        NoiseSchedule(**coefficients)


def test_a_model_without_influence_is_refused():
    ones, out = torch.ones(3, dtype=torch.float64), torch.tensor([-1.0, -1.0, 0.0], dtype=torch.float64)
    with pytest.raises(UserError, match="cannot be trained"):
        NoiseSchedule(ones, ones, ones, out)

"""The gradient from the loss back to the vectors, through everything, against finite differences."""

import pytest
import torch

from tests.fakes import FakeModel, fixed
from textinv_core.noise import NoiseSchedule
from textinv_core.training.objective import MIN_SNR_GAMMA, prediction_losses

PROMPTS = ("a embedding:cat on embedding:cat", "embedding:cat", "one embedding:cat two")
ORDER = [2, 0, 1]
T = torch.tensor([10, 500, 990])


def masks(dtype=torch.float64):
    weights = fixed(3, 3, 1, 4, 5, dtype=dtype).abs()
    weights[1] = 1
    return weights / weights.mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("loss_weighting", ["none", "min_snr"])
@pytest.mark.parametrize("weights", [None, masks()], ids=["plain", "masked"])
def test_gradients_are_those_of_finite_differences(loss_weighting, weights):
    model = FakeModel(torch.float64)
    latents, gaussian = fixed(1, 3, 3, 4, 5), fixed(2, 3, 3, 4, 5)

    def loss(clip_l, clip_g):
        vectors = {"clip_l": clip_l, "clip_g": clip_g}
        conditions = [
            model.condition(prompt, {"cat": lambda key, _: vectors[key][ORDER]}, latent)
            for prompt, latent in zip(PROMPTS, latents, strict=True)
        ]
        return prediction_losses(model, latents, gaussian, T, conditions, weights, loss_weighting).mean()

    vectors = fixed(4, 3, 4).requires_grad_(), fixed(5, 3, 6).requires_grad_()
    assert torch.autograd.gradcheck(loss, vectors, eps=1e-6, atol=1e-9, rtol=1e-6)
    assert all(gradient.abs().min() > 0 for gradient in torch.autograd.grad(loss(*vectors), vectors))


class Recalls:
    """A model whose prediction is what it is told, as a plain tensor."""

    def __init__(self, schedule, prediction):
        self.noise_schedule, self.prediction = schedule, prediction

    def predict(self, noisy, t, conditions):
        self.noisy, self.t, self.conditions = noisy, t, conditions
        return self.prediction


@pytest.fixture
def eps_schedule():
    sigmas = torch.logspace(-1, 1, 1000, dtype=torch.float64)
    ones = torch.ones_like(sigmas)
    return NoiseSchedule(ones, sigmas, ones, -sigmas)


LATENTS, GAUSSIAN = (fixed(seed, 3, 2, 4, 5, dtype=torch.float32) for seed in (1, 2))


def test_the_loss_is_the_mean_squared_error_to_the_noise(eps_schedule):
    prediction = fixed(6, 3, 2, 4, 5, dtype=torch.float32)
    model = Recalls(eps_schedule, prediction)
    loss = prediction_losses(model, LATENTS, GAUSSIAN, T, ["a", "b", "c"]).mean()
    assert torch.allclose(loss, torch.nn.functional.mse_loss(prediction, GAUSSIAN))
    assert torch.equal(model.noisy, eps_schedule.add_noise(LATENTS, GAUSSIAN, T))
    assert torch.equal(model.t, T) and model.conditions == ["a", "b", "c"]


def test_each_sample_has_its_own_mask_and_weight(eps_schedule):
    error = fixed(6, 3, 2, 4, 5, dtype=torch.float32)
    weights = masks(torch.float32)
    model = Recalls(eps_schedule, GAUSSIAN + error)
    snr = 1 / eps_schedule.noise[T] ** 2
    pull = (snr.clamp(max=5) / snr).tolist()
    assert MIN_SNR_GAMMA == 5 and pull[0] < pull[1] == pull[2] == 1
    expected = sum(float((error[i] ** 2 * weights[i]).mean()) * pull[i] for i in range(3)) / 3
    loss = prediction_losses(model, LATENTS, GAUSSIAN, T, [None] * 3, weights, "min_snr").mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_are_compared_in_float32(eps_schedule, dtype):
    # 300 squared is more than fp16 can hold.
    prediction = torch.full((3, 2, 4, 5), 300, dtype=dtype)
    loss = prediction_losses(
        Recalls(eps_schedule, prediction), LATENTS, torch.zeros_like(GAUSSIAN), T, [None] * 3
    ).mean()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(90000, rel=1e-3)

"""The loss of a host's model by an embedding's vectors, its gradient, and its slope along that.

Import `pack` and load the pack before this.
"""

import torch
from textinv.textinv_core.training.objective import prediction_losses

NAME, PROMPT = "my-dog", "a red embedding:my-dog in the snow"
SLOPE_AT = 2e-5  # the least part of the loss that a step along the gradient has to change for its slope to be measured


def largest_difference(gradient, other):
    """Of any encoder's gradient, as a part of the largest number of `other`."""
    return max(float((gradient[key] - other[key]).abs().max() / other[key].abs().max()) for key in other)


class Losses:
    """The loss for one picture, noise and timestep, by the vectors."""

    def __init__(self, model, latent):
        self.model, self.latent = model, latent
        self.noise = torch.randn(1, *latent.shape, generator=torch.Generator().manual_seed(2))
        self.t = torch.tensor([len(model.noise_schedule) * 6 // 10])

    def conditions(self, vectors):
        lookups = [{NAME: lambda key, occurrence: vectors[key]}]
        return self.model.conditions([PROMPT], lookups, [self.latent])

    def __call__(self, vectors):
        return prediction_losses(self.model, self.latent[None], self.noise, self.t, self.conditions(vectors))[0]

    @torch.no_grad()
    def precise(self, vectors):
        """The same in double precision, as far as predictions are: small differences are not rounded away."""
        schedule, latent = self.model.noise_schedule, self.latent[None]
        noisy = schedule.add_noise(latent, self.noise, self.t)
        predicted = self.model.predict(noisy, self.t, self.conditions(vectors)).double()
        return float(((predicted - schedule.target(latent, self.noise, self.t)) ** 2).mean())

    def gradient(self, start):
        vectors = {key: rows.clone().requires_grad_() for key, rows in start.items()}
        try:
            loss = self(vectors)
            found = torch.autograd.grad(loss, list(vectors.values()), allow_unused=True, materialize_grads=True)
        except RuntimeError:
            if not self.model.give_way():
                raise
            return self.gradient(start)
        return float(loss.detach()), dict(zip(vectors, found, strict=True))

    def slope(self, start, gradient, loss):
        """The slope of the loss along `gradient`, measured to both sides, over the gradient's norm."""
        norm = torch.stack([each.double().norm() for each in gradient.values()]).norm()
        unit = {key: each / norm.float() for key, each in gradient.items()}
        length = max(float(rows.norm()) for rows in start.values())
        for part in (1e-4, 1e-3, 1e-2, 1e-1):
            step = part * length
            ways = [{key: rows + way * step * unit[key] for key, rows in start.items()} for way in (1, -1)]
            up, down = map(self.precise, ways)
            if abs(up - down) > SLOPE_AT * loss:
                break
        return (up - down) / (2 * step) / float(norm)

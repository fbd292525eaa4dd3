"""ScheduleFree+: Schedule-Free AdamW with momentum, AdamC's decay and Polyak's step size."""

import math

import torch
from torch import Tensor

from llm_pretrain.optim.base import Groups, HostNumber, Rule, copies, summed
from llm_pretrain.optim.interpolated import Interpolated
from llm_pretrain.optim.piece import Total
from llm_pretrain.parts import local


class ScheduleFreePlus(Interpolated, Rule):
    """Defazio (2026), in the form of the authors' AdamCScheduleFreePlusPaper.

    The parameter is y, where gradients are taken; z, the raw iterate, and both moments are its
    state; the average x follows from y and z. In step k = 0, 1, ...

        L = sum |g|,  I = beta_k sum g (z - x),  E = mean of L so far, or L if polyak_beta is 0
        G = lr max(0, loss - loss_floor + I) / (sqrt(pi / 2) E)
        z -= G^2 weight_decay y + G m / (sqrt(v) + eps)
        x += c (z - x),  y = beta_k x + (1 - beta_k) z

    with bias-corrected moments m and v, and c the share of (k + 1)^r max(G)^2 in the sum of it.

    Where the authors' code is wrong, this is right: E is the moving average itself with its bias
    corrected when it is used (they keep the corrected value, so the correction compounds and steps
    vanish); a step without gradients is none (they divide by 0); clipped gradients do not inflate
    G; the loss is that of all ranks whatever the layout; and the loss may have a floor.

    Sums over all parameters and ranks are exact to rounding: each element is counted once. All of
    it stays on the device.
    """

    needs_loss = True
    late = frozenset({"origin"})

    def __init__(
        self,
        groups: Groups,
        *,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        interpolation: float = 0.9,
        interpolation_end: float = 0.965,
        anneal: int = 0,
        weight_power: float = 0.0,
        average_after: int = 0,
        polyak_beta: float = 0.0,
        loss_floor: float = 0.0,
        total: Total,
        plain_copies: int = 1,
    ) -> None:
        """`anneal`, `average_after`: in updates, from step 0 of the run; the rest as in
        OptimizerConfig.

        `total`: sums over ranks. `plain_copies`: ranks that hold the same values of parameters that
        are no DTensors, see `base.copies`.
        """
        self._betas, self._eps = betas, eps
        self._interpolation = (interpolation, interpolation_end)
        self._anneal, self._power, self._average_after = anneal, weight_power, average_after
        self._polyak_beta, self._floor = polyak_beta, loss_floor
        self._total, self._copies = total, plain_copies
        self._k, self._origin, self._beta = HostNumber(), HostNumber(), HostNumber(interpolation)
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self.make_state()

    def make_state(self, step: int = 0) -> None:
        """See Rule; also starts the rule's own numbers anew."""
        super().make_state(step)
        self._device = local(self.param_groups[0]["params"][0]).device
        self._k.value, self._origin.value = 0.0, float(step)
        self._beta.value = self._interpolation_now()
        self.shared = {
            "k": self._k.tensor,
            "origin": self._origin.tensor,
            "interpolation": self._beta.tensor,
            "lr_max": self._number(self._eps),
            "weight_sum": self._number(0.0),
            "gradient_l1": self._number(0.0),
        }

    def rates(self) -> dict[str, Tensor]:
        """See Rule: G, Polyak's step size times the learning rate."""
        return {"polyak_step": torch.as_tensor(self.rate)}

    @property
    def _step(self) -> float:
        """Updates that the run has done, those before this rule included."""
        return self._origin.value + self._k.value

    def _number(self, value: float) -> Tensor:
        return torch.full((), value, dtype=torch.float64, device=self._device)

    def _first_state(self, _group: dict[str, object], parameter: Tensor) -> dict[str, Tensor]:
        return {
            "z": parameter.detach().clone(),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }

    def _update(self, loss: Tensor | None, clipped: Tensor | None) -> None:
        assert loss is not None
        before, beta = self._beta.value, self._interpolation_now()
        rate = max(self.lr, self._eps) * self._polyak(loss, clipped, beta / before)
        self.rate = rate
        share = self._share(rate)
        self._move(rate, beta * (1 - share) / before, beta * share + 1 - beta)
        self._k.value += 1
        self._beta.value = beta

    def _interpolation_now(self) -> float:
        """beta_k, between its start and its end by geometric means of 1 - beta."""
        start, end = self._interpolation
        if not self._anneal:
            return start
        done = min(self._step / self._anneal, 1)
        return 1 - math.exp((1 - done) * math.log(1 - start) + done * math.log(1 - end))

    def _polyak(self, loss: Tensor, clipped: Tensor | None, ratio: float) -> Tensor:
        """Polyak's step size, 0-dim float64. `ratio`: beta_k over the beta that made y.

        Since z - x is (z - y) / beta for the beta of y, I needs no x.
        """
        l1: list[tuple[int, Tensor]] = []
        inner: list[tuple[int, Tensor]] = []
        for _, batch in self._batches("z"):
            norms = torch._foreach_norm(batch.grads, 1, dtype=torch.float64)
            counts = [copies(p, self._copies) for p in batch.owners]
            l1.extend(zip(counts, norms, strict=True))
            for count, y, z, g in zip(
                counts, batch.params, batch.state["z"], batch.grads, strict=True
            ):
                inner.append((count, torch.mul(z - y, g).sum(dtype=torch.float64)))
        own = loss.detach().to(self._device, torch.float64)
        gradients = torch.stack([summed(l1, self._device), summed(inner, self._device) * ratio])
        if clipped is not None:
            gradients = gradients / clipped.to(self._device, torch.float64)
        # The ones add up to the number of ranks.
        parts = torch.stack([own, torch.ones_like(own), *gradients])
        losses, ranks, length, product = self._total(parts).unbind()
        scale = self._scale(math.sqrt(math.pi / 2) * length)
        excess = (losses / ranks - self._floor + product).clamp(min=0)
        return torch.where(scale > 0, excess / scale, torch.zeros_like(excess))

    def _scale(self, length: Tensor) -> Tensor:
        """The average of `length` over the steps so far, with its bias corrected."""
        average, decay = self.shared["gradient_l1"], self._polyak_beta
        average.copy_(decay * average + (1 - decay) * length)
        corrected: Tensor = average / (1 - decay ** (self._k.value + 1))
        return corrected

    def _share(self, rate: Tensor) -> Tensor:
        """c: how far the average goes to the new iterate."""
        largest, weights = self.shared["lr_max"], self.shared["weight_sum"]
        largest.copy_(torch.maximum(largest, rate))
        if self._step < self._average_after:
            return torch.ones_like(rate)
        weight: Tensor = (self._k.value + 1) ** self._power * largest.square()
        weights.add_(weight)
        return weight / weights

    def _move(self, rate: Tensor, old: Tensor, new: Tensor) -> None:
        """z += step, and y = z_old + old (y_old - z_old) + new step."""
        beta1, beta2 = self._betas
        correction1, correction2 = (1 - b ** (self._k.value + 1) for b in self._betas)
        for decay, batch in self._batches("z", "exp_avg", "exp_avg_sq"):
            y, z, g = batch.params, batch.state["z"], batch.grads
            m, v = batch.state["exp_avg"], batch.state["exp_avg_sq"]
            torch._foreach_lerp_(m, g, 1 - beta1)
            torch._foreach_mul_(v, beta2)
            torch._foreach_addcmul_(v, g, g, 1 - beta2)
            step = torch._foreach_div(v, correction2)
            torch._foreach_sqrt_(step)
            torch._foreach_add_(step, self._eps)
            torch._foreach_reciprocal_(step)
            torch._foreach_mul_(step, m)
            dtype = y[0].dtype
            torch._foreach_mul_(step, (-rate / correction1).to(dtype))
            if decay:
                torch._foreach_add_(step, torch._foreach_mul(y, (-rate.square() * decay).to(dtype)))
            torch._foreach_sub_(y, z)
            torch._foreach_mul_(y, old.to(dtype))
            torch._foreach_add_(y, z)
            torch._foreach_add_(z, step)
            torch._foreach_mul_(step, new.to(dtype))
            torch._foreach_add_(y, step)

"""The update rule: which one, its rates and averages, and what is decayed."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from llm_pretrain.config.fields import RULES, NonNegative, Positive, PositiveFloat
from llm_pretrain.duration import Duration, steps

RuleName = Literal["adamw", "schedule_free", "schedule_free_plus", "ademamix", "muon"]
Decay = Annotated[float, Field(ge=0, lt=1)]
Interpolation = Annotated[float, Field(gt=0, lt=1)]


@dataclass(config=RULES)
class OptimizerConfig:
    """The update rule and its peak learning rate. Weight decay is decoupled, and applies to the
    matrices of the blocks and to an untied head only, never to embeddings or norms."""

    name: RuleName = "adamw"
    """adamw; schedule_free: Schedule-Free AdamW (Defazio et al. 2024); schedule_free_plus: with
    momentum, AdamC's decay and Polyak's step size (Defazio 2026); ademamix: AdamW with a second,
    slow average (Pagliardini et al. 2024), as Apertus used it; muon: orthogonal updates of the
    blocks' matrices, AdamW for the rest (Jordan 2024, Liu et al. 2025). The two schedule-free ones
    need schedule=constant; what is evaluated, exported and branched from is their average."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate; the schedule multiplies it. The paper's constant rate is half of the
    best cosine peak. auto: from `tuned_on`. schedule_free: 1 to 10 times a tuned AdamW's.
    schedule_free_plus: multiplies Polyak's step size, so 1 or a little less. muon: as for adamw,
    since its updates are scaled to the same size."""
    beta1: Decay = 0.9
    """Decay of the first moment. Not for schedule_free, whose momentum is `interpolation`."""
    beta2: Decay = 0.95
    """Decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegative = 0.1
    """Decoupled decay: a share of the weight that is taken off at each step, times the learning
    rate. schedule_free: times the learning rate, of the point where gradients are taken.
    schedule_free_plus: times the square of its step size, so it needs 20 to 50 where others have
    0.1."""
    grad_clip: NonNegative = 1.0
    """Largest global gradient norm; 0 turns clipping off. schedule_free_plus finds its step size
    from the gradients before clipping."""
    corrected_decay: bool = False
    """adamw: AdamC (Defazio 2025). The decay of the blocks' matrices is times lr * lr / peak
    instead of lr, so that their norms settle at the same level whatever the schedule; the head's
    is as before, since no norm follows it."""
    interpolation: Interpolation = 0.9
    """schedule_free, schedule_free_plus: weight of the average in the point where gradients are
    taken, the rest is of the raw iterate; 0.95 to 0.98 for long runs."""
    weight_power: NonNegative = 0.0
    """schedule_free, schedule_free_plus: iterate k enters the average with weight k^r times the
    square of the largest rate so far. 0: all alike; 1 or 2: late ones more."""
    average_after: Duration | None = None
    """schedule_free_plus: where in the run the average begins; until then it is the raw iterate.
    Null: the end of schedule.warmup; up to twice that is advised."""
    interpolation_end: Interpolation = 0.965
    """schedule_free_plus: what `interpolation` rises to within `anneal`."""
    anneal: Duration = steps(0)
    """schedule_free_plus: where in the run 1 - interpolation, which falls geometrically, is at its
    end; "0 steps": it stays."""
    polyak_beta: Decay = 0.0
    """schedule_free_plus: decay of the moving average of the gradients' absolute sum, by which
    Polyak's step is divided; its bias is corrected. 0: this step's alone."""
    loss_floor: NonNegative = 0.0
    """schedule_free_plus: the loss that training cannot get below, in nats per token: Polyak's step
    is proportional to what the loss is above it. 0 makes steps too long near the end where the
    data's entropy is large."""
    beta3: Decay = 0.9999
    """ademamix: decay of the slow average."""
    alpha: NonNegative = 8.0
    """ademamix: weight of the slow average beside the fast one's 1."""
    slow_warmup: Duration = steps(0)
    """ademamix: until where in the run alpha rises from 0, and the half-life of the slow average
    from the fast one's. The paper takes the length of the whole run, Apertus 100k steps."""
    momentum: Decay = 0.95
    """muon: decay of the gradients' average that is made orthogonal, with Nesterov's look ahead."""
    ns_steps: Positive = 5
    """muon: Newton-Schulz iterations."""
    project: Duration = steps(0)
    """Normalize-and-Project (Lyle et al. 2024) around any rule: how often the matrices that
    `projected` names are scaled back to the Frobenius norm they began with. "0 steps": never."""
    projected: Literal["invariant", "blocks"] = "invariant"
    """project: invariant: queries and keys, whose scale their norms undo (model.qk_norm), so that
    the model computes the same after as before. blocks: all matrices of the blocks, as in the
    paper; values, outputs and SwiGLU then cannot change their norm, which limits the model."""
    scale_decay: NonNegative = 0.0
    """project: decay of the norms' scales towards 1, times the step size; their scale would else
    take over what the matrices no longer can do."""

"""One small problem under every way to hold parameters, the engine's part done by hand."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from llm_pretrain.config.optimizer import OptimizerConfig
from llm_pretrain.optim.base import Rule
from llm_pretrain.optim.build import Lengths, build_rule
from llm_pretrain.optim.piece import Piece
from llm_pretrain.world import World

Q, V, SCALE = "blocks.0.attention.q.weight", "blocks.0.attention.v.weight", "blocks.0.q_norm.weight"
STEPS, ROWS = 20, 8
LENGTHS = Lengths(average_after=3, anneal=9, slow_warmup=12)
RULES = {
    "adamw": (OptimizerConfig(lr=0.01, corrected_decay=True), LENGTHS),
    "schedule_free": (OptimizerConfig(name="schedule_free", lr=0.01), LENGTHS),
    "schedule_free_plus": (
        OptimizerConfig(name="schedule_free_plus", lr=0.5, weight_decay=5.0, polyak_beta=0.5),
        LENGTHS,
    ),
    "ademamix": (OptimizerConfig(name="ademamix", lr=0.01), LENGTHS),
    "muon": (OptimizerConfig(name="muon", lr=0.01), LENGTHS),
    "projected": (
        OptimizerConfig(
            name="schedule_free_plus", lr=0.5, projected="blocks", scale_decay=0.1, loss_floor=0.01
        ),
        Lengths(project=3),
    ),
}
PLACES = {
    # On meshes of 2, 2 x 2 and 2 x 2 ranks; 5 and 3 rows do not divide evenly.
    "shard": {Q: [Shard(0)], V: [Shard(0)], SCALE: [Shard(0)]},
    "copies": {Q: [Replicate(), Shard(0)], V: [Replicate(), Shard(0)], SCALE: [Replicate()] * 2},
    "tensor": {
        Q: [Shard(0), Shard(1)],
        V: [Shard(1), Shard(0)],
        SCALE: [Shard(0), Replicate()],
    },
}


def start(dtype: torch.dtype) -> dict[str, Tensor]:
    """Whole values."""
    draw = torch.Generator().manual_seed(3)
    shapes = {Q: (5, 4), V: (4, 6), SCALE: (5,)}
    return {n: torch.randn(s, generator=draw, dtype=dtype) for n, s in shapes.items()}


def loss_of(values: dict[str, Tensor], rows: slice) -> Tensor:
    """Mean over some of the examples."""
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(ROWS, 4, generator=draw, dtype=values[Q].dtype)[rows]
    y = torch.randn(ROWS, 6, generator=draw, dtype=values[Q].dtype)[rows]
    hidden = torch.tanh(x @ values[Q].T * values[SCALE])
    return (hidden[:, :4] @ values[V] - y).square().mean()


def one(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """What one process reads out after all steps."""
    parameters = {n: torch.nn.Parameter(v) for n, v in start(dtype).items()}
    rule = build_rule(parameters.items(), *RULES[name])
    for _ in range(STEPS):
        loss = loss_of(parameters, slice(None))
        grads = torch.autograd.grad(loss, list(parameters.values()))
        for p, g in zip(parameters.values(), grads, strict=True):
            p.grad = g
        rule.update(loss=loss.detach())
    return _outcome(rule, parameters)


def dtensors(world: World, places: str, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same with DTensors."""
    layout = world.layout
    shape = [n for n in (layout.replicate, layout.shard, layout.tensor) if n > 1]
    mesh = init_device_mesh("cpu", tuple(shape))

    def cut(n: str, value: Tensor) -> DTensor:
        return distribute_tensor(value, mesh, PLACES[places][n])

    parameters = {n: torch.nn.Parameter(cut(n, v)) for n, v in start(dtype).items()}
    rule = build_rule(parameters.items(), *RULES[name], total=_total)

    def gather() -> dict[str, Tensor]:
        return {n: p.full_tensor() for n, p in parameters.items()}  # type: ignore[attr-defined]

    def give(grads: dict[str, Tensor]) -> None:
        for n, grad in grads.items():
            parameters[n].grad = cut(n, grad)

    _train(world, rule, gather, give)
    return _outcome(rule, parameters)


def copied(world: World, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same with whole plain tensors on every rank, as under DDP."""
    parameters = {n: torch.nn.Parameter(v) for n, v in start(dtype).items()}
    rule = build_rule(parameters.items(), *RULES[name], total=_total, plain_copies=world.size)

    def give(grads: dict[str, Tensor]) -> None:
        for n, grad in grads.items():
            parameters[n].grad = grad

    _train(world, rule, lambda: {n: p.detach() for n, p in parameters.items()}, give)
    return _outcome(rule, parameters)


def pieces(world: World, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same with ZeRO's pieces: each rank has an equal part of all parameters in one row."""
    whole = start(dtype)
    row = torch.cat([value.flatten() for value in whole.values()])
    part = -(-row.numel() // world.size)
    mine = range(world.rank * part, (world.rank + 1) * part)
    parameters, offset = dict[str, Piece](), 0
    for n, value in whole.items():
        begin, end = (min(max(i - offset, 0), value.numel()) for i in (mine.start, mine.stop))
        parameters[n] = Piece(value.flatten()[begin:end].clone(), value.shape, begin)
        offset += value.numel()
    rule = build_rule(parameters.items(), *RULES[name], total=_total)

    def join(read: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {n: p.assemble(read(p).detach(), _total) for n, p in parameters.items()}

    def give(grads: dict[str, Tensor]) -> None:
        for n, grad in grads.items():
            parameters[n].grad = parameters[n].own(grad)

    _train(world, rule, lambda: join(lambda p: p), give)
    norms = {n: rule.state[p]["norm"] for n, p in parameters.items() if "norm" in rule.state[p]}
    return join(rule.readout) | {f"{n}.norm": norm for n, norm in norms.items()}


def agree(world: World, kind: str, places: str, names: tuple[str, ...]) -> dict[str, float]:
    """The largest difference of any rank to one process, by rule and dtype."""
    found = {}
    for name in names:
        for dtype in (torch.float64, torch.float32):
            if name == "muon" and dtype == torch.float32:
                # Its products round to bfloat16, where a last bit of float32 can make a step.
                continue
            if kind == "dtensors":
                ours = dtensors(world, places, name, dtype)
            else:
                ours = (copied if kind == "copied" else pieces)(world, name, dtype)
            theirs = one(name, dtype)
            worst = max(float((ours[n] - theirs[n]).abs().max()) for n in theirs)
            found[f"{name} {dtype}"] = worst
    return found


def _outcome(rule: Rule, parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """What is read out, and the norms that are held."""
    found = {}
    for n, p in parameters.items():
        value = rule.readout(p).detach()
        found[n] = value.full_tensor() if isinstance(value, DTensor) else value
        if "norm" in rule.state[p]:
            found[f"{n}.norm"] = rule.state[p]["norm"]
    return found


def _train(
    world: World,
    rule: Rule,
    gather: Callable[[], dict[str, Tensor]],
    give: Callable[[dict[str, Tensor]], None],
) -> None:
    """Each rank has the loss of its own examples, and the mean gradient of all."""
    part = ROWS // world.layout.data_size
    data_rank = world.layout.data_rank(world.rank)
    rows = slice(data_rank * part, (data_rank + 1) * part)
    for _ in range(STEPS):
        values = {n: v.detach().requires_grad_() for n, v in gather().items()}
        loss = loss_of(values, rows)
        grads: dict[str, Any] = dict(
            zip(values, torch.autograd.grad(loss, list(values.values())), strict=True)
        )
        for grad in grads.values():
            dist.all_reduce(grad)
            grad.div_(world.size)
        give(grads)
        rule.update(loss=loss.detach())


def _total(vector: Tensor) -> Tensor:
    dist.all_reduce(vector)
    return vector

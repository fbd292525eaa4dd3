"""Products of the blocks' matrices in 8 bits, by Transformer Engine or torchao.

A matrix stays an `nn.Linear` in all that others see of it: the same parameter under the same name,
in float32. So checkpoints, engines and the optimizer know nothing of FP8; only a pass does.

Transformer Engine could also fuse a norm with the products that follow it. Its LayerNormLinear and
LayerNormMLP are not used: the first joins queries, keys and values anew in every pass when FSDP has
gathered them one by one, the second holds gate and up as one parameter, whose rows over the ranks
are not those of our two. Both would give other checkpoints than every other precision.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_pretrain.config.precision import TORCHAO, TRANSFORMER_ENGINE, obstacle
from llm_pretrain.config.schema import PrecisionConfig, TrainConfig
from llm_pretrain.engine.base import State
from llm_pretrain.errors import UserError
from llm_pretrain.model.transformer import Block, Transformer

_INSTALL = {
    TRANSFORMER_ENGINE: "pip install --no-build-isolation 'llm-pretrain[transformer-engine]'",
    TORCHAO: "pip install 'llm-pretrain[fp8]'",
}
_CAPABLE = (8, 9)
"""The first compute capability with products in FP8: Ada, then Hopper (9.0) and Blackwell (10)."""
_WAYS, _PARTS = ("scaling_fwd", "scaling_bwd"), ("scale", "amax_history")
"""How Transformer Engine names what delayed scaling remembers of the two passes."""


@dataclass(frozen=True)
class Products:
    """The library that does the products."""

    library: str
    why_not: dict[str, str]
    """The one that was preferred, and why it was not taken."""


def available(config: TrainConfig, device: torch.device) -> Products:
    """Which library can do what `config.precision` asks for on `device`.

    Raises UserError, naming what is missing, when none can or the one asked for cannot.
    """
    precision = config.precision
    if not precision.emulate:
        _require_capable(device)
    current = precision.recipe == "current"
    candidates = [] if precision.emulate else [TRANSFORMER_ENGINE]
    candidates += [TORCHAO] if current else []
    if precision.library != "auto":
        candidates = [precision.library]
    why_not: dict[str, str] = {}
    for library in candidates:
        reason = _torchao_fails() if library == TORCHAO else _transformer_engine_fails(config)
        if reason is None:
            return Products(library, why_not)
        why_not[library] = reason
    reasons = "; ".join(f"{library}: {reason}" for library, reason in why_not.items())
    raise UserError(f"precision: no library for fp8: {reasons}; or use precision=bf16")


def convert(model: Transformer, precision: PrecisionConfig) -> None:
    """Replace the matrices of the blocks, on the meta device, by ones that multiply in FP8.

    Without effect unless `precision` is fp8. Embedding, head and norms stay as they are, and so do
    the blocks that `keep_first` and `keep_last` name. `precision.library` is a name, not auto.
    """
    if precision.name != "fp8":
        return
    assert precision.library != "auto"
    for block in model.blocks[precision.keep_first : len(model.blocks) - precision.keep_last]:
        if precision.library == TRANSFORMER_ENGINE:
            _swap(block, _te_linear)
            assert isinstance(block, Block)
            block.products = _te_autocast(precision)
        else:
            ao = _torchao()
            # Gathering in FP8 would need parameters of another kind, which no checkpoint knows.
            ao.convert_to_float8_training(
                block, config=ao.Float8LinearConfig(emulate=precision.emulate)
            )


def scaled(precision: PrecisionConfig) -> Callable[[], AbstractContextManager[Any]] | None:
    """What a forward pass runs in beside torch's autocast; None: nothing."""
    if precision.name != "fp8" or precision.library != TRANSFORMER_ENGINE:
        return None
    return _te_autocast(precision)


def state(model: Transformer, precision: PrecisionConfig) -> State:
    """What delayed scaling remembers, as the part 'fp8' of a training state; else nothing.

    Copies. Transformer Engine reduces the values over all ranks, so each rank has the same.
    """
    remembered = _remembered(model, precision)
    return {"fp8": remembered} if remembered else {}


def loading(
    model: Transformer, precision: PrecisionConfig, fill: Callable[[State], None]
) -> Callable[[State], None]:
    """`fill`, but it fills what delayed scaling remembers, too.

    What `fill` leaves out is as at the start of a run: scales of 1, with which a first pass on
    trained parameters rounds small gradients to 0.
    """

    def both(state: State) -> None:
        values = _remembered(model, precision)
        for name, value in values.items():
            value.fill_(name.endswith(".scale"))
        fill({**state, "fp8": values} if values else state)
        _remember(model, precision, values)

    return both


@contextmanager
def unchanged(model: Transformer, precision: PrecisionConfig) -> Iterator[None]:
    """Forget at the end what the passes inside have added to the `state`."""
    before = _remembered(model, precision)
    yield
    _remember(model, precision, before)


def _require_capable(device: torch.device) -> None:
    wanted = ".".join(map(str, _CAPABLE))
    instead = "use precision=bf16, or precision.emulate=true, slow, to see what the rounding does"
    if device.type != "cuda":
        raise UserError(
            f"precision: fp8 needs a GPU of compute capability {wanted} or later, and this run "
            f"computes on {device.type}; {instead}"
        )
    found = torch.cuda.get_device_capability(device)
    if found < _CAPABLE:
        raise UserError(
            f"precision: fp8 needs a GPU of compute capability {wanted} or later, and "
            f"{torch.cuda.get_device_name(device)} has {found[0]}.{found[1]}; {instead}"
        )


def _torchao_fails() -> str | None:
    try:
        _torchao()
    except ImportError as error:
        return f"does not work ({error}); {_INSTALL[TORCHAO]}"
    return None


def _transformer_engine_fails(config: TrainConfig) -> str | None:
    reason = obstacle(config)
    if reason is not None:
        return reason
    try:
        te = _transformer_engine()
        block = config.precision.recipe == "block"
        probe = te.is_fp8_block_scaling_available if block else te.is_fp8_available
        works, reason = probe(return_reason=True)
    except Exception as error:  # noqa: BLE001  (its import fails in many ways, RuntimeError for one)
        return f"does not work ({error}); {_INSTALL[TRANSFORMER_ENGINE]}"
    return None if works else reason


def _torchao() -> Any:
    """Slow to import, and an extra."""
    # It warns of every extension of its own that was built for another machine; none is used here.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        import torchao.float8  # noqa: PLC0415
    finally:
        logging.disable(before)
    return torchao.float8


def _transformer_engine() -> Any:
    """Slow to import, and an extra."""
    import transformer_engine.pytorch  # noqa: PLC0415

    return transformer_engine.pytorch


@functools.cache
def _recipe(name: str) -> Any:
    """One object a name, by which Transformer Engine knows a recipe again."""
    from transformer_engine.common import recipe  # noqa: PLC0415

    kinds = {"current": "Float8CurrentScaling", "delayed": "DelayedScaling"}
    return getattr(recipe, kinds.get(name, "Float8BlockScaling"))()


def _te_autocast(precision: PrecisionConfig) -> Callable[[], AbstractContextManager[Any]]:
    return functools.partial(
        _transformer_engine().autocast, enabled=True, recipe=_recipe(precision.recipe)
    )


def _te_linear(linear: nn.Linear) -> nn.Module:
    made: nn.Module = _transformer_engine().Linear(
        linear.in_features,
        linear.out_features,
        bias=False,
        params_dtype=linear.weight.dtype,
        # It compares with the string.
        device="meta",
    )
    return made


def _swap(block: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    for parent in list(block.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, make(child))


def _remembering(model: Transformer, precision: PrecisionConfig) -> Iterator[tuple[str, Any]]:
    """Name and module of each matrix with delayed scaling, which has its tensors from then on."""
    if precision.name != "fp8" or precision.recipe != "delayed":
        return
    kind = _transformer_engine().Linear
    for name, module in model.named_modules():
        if isinstance(module, kind):
            if module.get_fp8_meta_tensors() is None:
                # Otherwise its first pass makes them, too late to save or load them. Without
                # gradients, so that leaving the context updates nothing.
                with torch.no_grad(), _te_autocast(precision)():
                    module.init_fp8_metadata(num_gemms=1)
            yield name, module


def _remembered(model: Transformer, precision: PrecisionConfig) -> dict[str, Tensor]:
    """Scales and largest values of earlier passes, copies by name."""
    return {
        f"{name}.{way}.{part}": tensor
        for name, module in _remembering(model, precision)
        for way, pair in module.get_fp8_meta_tensors().items()
        for part, tensor in zip(_PARTS, pair, strict=True)
    }


def _remember(model: Transformer, precision: PrecisionConfig, values: dict[str, Tensor]) -> None:
    for name, module in _remembering(model, precision):
        module.reset_fp8_meta_tensors(
            {way: [values[f"{name}.{way}.{part}"] for part in _PARTS] for way in _WAYS}
        )

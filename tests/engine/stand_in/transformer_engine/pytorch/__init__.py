"""Linear, autocast and the questions what a device can do."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from transformer_engine.common.recipe import DelayedScaling, Recipe

E4M3_MAX, E5M2_MAX = 448.0, 57344.0


class _Global:
    enabled = False
    recipe: Recipe | None = None
    depth = 0
    forward: dict[int, "_Meta"] = {}  # noqa: RUF012
    """State of the modules that were called with delayed scaling, updated when autocast ends."""


class _Meta:
    """What delayed scaling remembers of one direction: `num` tensors, `length` passes."""

    def __init__(self, num: int, length: int, largest: float) -> None:
        self.scale = torch.ones(num)
        self.amax_history = torch.zeros(length, num)
        self.largest = largest

    def update(self) -> None:
        """A scale from the history, then room for the next pass."""
        amax = self.amax_history.max(dim=0).values
        self.scale.copy_(torch.where(amax > 0, self.largest / amax, self.scale))
        self.amax_history.copy_(self.amax_history.roll(-1, 0))
        self.amax_history[0] = 0


class autocast:  # noqa: N801
    """Products inside are done in FP8."""

    def __init__(
        self,
        enabled: bool = True,
        calibrating: bool = False,
        recipe: Recipe | None = None,
        amax_reduction_group: Any = None,
    ) -> None:
        self._enabled, self._recipe = enabled, recipe

    def __enter__(self) -> "autocast":
        self._before = (_Global.enabled, _Global.recipe)
        _Global.enabled, _Global.recipe = self._enabled, self._recipe
        _Global.depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        _Global.enabled, _Global.recipe = self._before
        _Global.depth -= 1
        if self._enabled and _Global.depth == 0 and torch.is_grad_enabled():
            for meta in _Global.forward.values():
                meta.update()


class Linear(nn.Module):
    """y = x A^T + b."""

    def __init__(  # noqa: PLR0917  (as in the source)
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Any = None,
        rng_tracker_name: str | None = None,
        init_method: Any = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        parameters_split: Any = None,
        device: torch.device | str = "cuda",
    ) -> None:
        super().__init__()
        # As in the source, which compares with a string.
        assert device == "meta" or torch.cuda.is_available(), "would need a GPU"
        self.in_features, self.out_features, self.use_bias = in_features, out_features, bias
        weight = torch.empty(out_features, in_features, dtype=params_dtype, device=device)
        self.weight = nn.Parameter(weight)
        self.fp8_meta: dict[str, Any] = {}
        self.seen: list[str] = []
        """The recipe of each pass, for the tests."""

    def get_fp8_meta_tensors(self) -> dict[str, list[Tensor]] | None:
        """Scales and largest values; None before they exist."""
        if "scaling_fwd" not in self.fp8_meta or "scaling_bwd" not in self.fp8_meta:
            return None
        keys = ("scaling_fwd", "scaling_bwd")
        metas = {key: self.fp8_meta[key] for key in keys}
        return {k: [m.scale.clone(), m.amax_history.clone()] for k, m in metas.items()}

    def reset_fp8_meta_tensors(self, fp8_meta_tensors: Any = None) -> None:
        """Set them."""
        for key in ("scaling_fwd", "scaling_bwd"):
            self.fp8_meta[key].scale.copy_(fp8_meta_tensors[key][0])
            self.fp8_meta[key].amax_history.copy_(fp8_meta_tensors[key][1])

    def init_fp8_metadata(self, num_gemms: int = 1) -> None:
        """Make them, if the recipe of the moment needs them."""
        recipe = _Global.recipe
        if isinstance(recipe, DelayedScaling) and "scaling_fwd" not in self.fp8_meta:
            length = recipe.amax_history_len
            self.fp8_meta["scaling_fwd"] = _Meta(3 * num_gemms, length, E4M3_MAX)
            self.fp8_meta["scaling_bwd"] = _Meta(2 * num_gemms, length, E5M2_MAX)

    def forward(self, inp: Tensor, is_first_microbatch: bool | None = None) -> Tensor:
        """(..., in) -> (..., out)."""
        self.seen.append(type(_Global.recipe).__name__ if _Global.enabled else "none")
        if _Global.enabled and isinstance(_Global.recipe, DelayedScaling):
            self.init_fp8_metadata()
            meta = self.fp8_meta["scaling_fwd"]
            _Global.forward[id(self)] = meta
            with torch.no_grad():
                for i, tensor in enumerate((inp, self.weight)):
                    largest = tensor.abs().max().float()
                    meta.amax_history[0, i] = torch.maximum(meta.amax_history[0, i], largest)
        return F.linear(inp, self.weight)


def is_fp8_available(return_reason: bool = False) -> bool | tuple[bool, str]:
    """For delayed and current scaling."""
    return (True, "") if return_reason else True


def is_fp8_block_scaling_available(return_reason: bool = False) -> bool | tuple[bool, str]:
    """For block scaling."""
    reason = "FP8 block scaled GEMM requires compute capability 9.0 or higher and CUDA >= 12.9."
    return (False, reason) if return_reason else False

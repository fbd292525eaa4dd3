"""How a run comes to its attention kernel."""

import contextlib
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llm_pretrain.engine import trial
from llm_pretrain.engine.trial import Choice, Sample, Shape, candidates, choose, winner
from llm_pretrain.errors import UserError
from llm_pretrain.model import attention, flash
from llm_pretrain.model.attention import Backend, Documents, ScaledDotProduct

CPU = torch.device("cpu")
SHAPE = Shape(batch=2, length=50, heads=4, kv_heads=2, head_dim=16)
MASKED = pytest.mark.parametrize("masked", [False, True])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
Wrong = Callable[[Tensor, Tensor, Tensor, Any], Tensor]

plain = attention.backend("math")


class Broken:
    """The plain kernel with something wrong around it."""

    name = "flash"

    def __init__(self, call: Wrong) -> None:
        self._call = call

    def mask(self, documents: Documents | None, length: int) -> Any:
        return plain.mask(documents, length)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        return self._call(q, k, v, mask)


def raises(_q: Tensor, _k: Tensor, _v: Tensor, _mask: Any) -> Tensor:
    raise RuntimeError("no kernel image\nis available for execution on the device")


def last_row_unwritten(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    y = plain(q, k, v, mask)
    return torch.cat((y[:, :-1], y[:, -1:] * torch.nan), dim=1)


BROKEN: dict[str, tuple[Wrong, str]] = {
    "raises": (raises, "^no kernel image$"),
    "scaled": (lambda q, k, v, m: 1.2 * plain(q, k, v, m), "wrong: relative error 2.0e-01 of"),
    "last row unwritten": (last_row_unwritten, "wrong: relative error nan of"),
    "no gradient of keys": (lambda q, k, v, m: plain(q, 0 * k + k.detach(), v, m), "of dk"),
    "looks ahead": (
        lambda q, k, v, _m: plain(q, k, v, torch.ones(q.shape[1], q.shape[1]).bool()),
        "wrong: relative error",
    ),
    "ignores the mask": (lambda q, k, v, _m: plain(q, k, v, None), "^it ignores the mask$"),
}


def inject(monkeypatch: pytest.MonkeyPatch, name: str, kernel: Backend) -> None:
    def found(asked: str) -> Backend:
        return kernel if asked == name else attention.backend(asked)

    monkeypatch.setattr(trial, "backend", found)


@MASKED
@DTYPES
def test_auto_on_a_cpu(dtype: torch.dtype, masked: bool) -> None:
    assert choose("auto", SHAPE, CPU, dtype, masked=masked) == Choice("flash", {}, {})


@MASKED
@DTYPES
@pytest.mark.parametrize("name", ["flash", "math"])
def test_by_name(name: str, dtype: torch.dtype, masked: bool) -> None:
    assert choose(name, SHAPE, CPU, dtype, masked=masked) == Choice(name, {}, {})


@MASKED
@pytest.mark.parametrize("length", [1, 2, 3, 31, 64, 65, 127])
@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (5, 5), (8, 1)])
def test_any_shape(length: int, heads: tuple[int, int], masked: bool) -> None:
    shape = Shape(1, length, *heads, head_dim=6)
    assert choose("auto", shape, CPU, torch.float32, masked=masked).name == "flash"


@DTYPES
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_kernel_is_not_taken(
    broken: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, reason = BROKEN[broken]
    inject(monkeypatch, "flash", Broken(call))
    found = choose("auto", SHAPE, CPU, dtype, masked=True)
    assert (found.name, list(found.why_not)) == ("math", ["flash"])
    assert re.search(reason, found.why_not["flash"])
    with pytest.raises(UserError) as refused:
        choose("flash", SHAPE, CPU, dtype, masked=True)
    assert str(refused.value) == (
        f"model.attention: flash cannot be used: {found.why_not['flash']}; use auto or one of math"
    )


def test_nothing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "backend", lambda _name: Broken(raises))
    with pytest.raises(UserError, match="no kernel can be used: flash: no kernel image; math: no"):
        choose("auto", SHAPE, CPU, torch.float32, masked=False)


@pytest.mark.parametrize("name", ["cudnn", "efficient"])
def test_kernels_for_other_devices(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} cannot be used: it needs a CUDA device; use auto"):
        choose(name, SHAPE, CPU, torch.float32, masked=False)


def test_flex_cannot_train_on_a_cpu() -> None:
    with pytest.raises(UserError, match=r"flex cannot be used: .*backward on CPU"):
        choose("flex", SHAPE, CPU, torch.float32, masked=True)


@MASKED
@pytest.mark.parametrize("name", sorted(flash.PACKAGES))
def test_a_package_that_is_not_installed(
    name: str, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = flash.Package("no-such-distribution", "no_such_module", None)
    monkeypatch.setitem(flash.PACKAGES, name, missing)
    expected = (
        f"model.attention: {name} cannot be used: package no-such-distribution is not installed; "
        "use auto or one of flash, math"
    )
    with pytest.raises(UserError, match=f"^{expected}$"):
        choose(name, SHAPE, CPU, torch.float32, masked=masked)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "raise RuntimeError('cuDNN is too old\\nsee the manual')",
            "RuntimeError: cuDNN is too old;",
        ),
        ("", "AttributeError: module 'broken_kernels' has no attribute 'flash_attn_func';"),
    ],
)
def test_a_package_that_cannot_be_imported(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version is said, since the package is there: here that of another."""
    (tmp_path / "broken_kernels.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_kernels", raising=False)
    monkeypatch.setitem(flash.PACKAGES, "fa3", flash.Package("numpy", "broken_kernels", None))
    with pytest.raises(UserError) as refused:
        choose("fa3", SHAPE, CPU, torch.float32, masked=False)
    assert f"fa3 cannot be used: numpy {np.__version__} cannot be used: {reason}" in str(
        refused.value
    )


@pytest.mark.parametrize("asked", ["auto", "flash", "cudnn"])
def test_no_random_state_is_touched(asked: str) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    try:
        choose(asked, SHAPE, CPU, torch.float32, masked=True)
    except UserError:
        assert asked == "cudnn"
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert np.array_equal(before[2], after[2])


def test_the_state_of_the_caller_does_not_matter() -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert choose("auto", SHAPE, CPU, torch.float32, masked=True) == Choice("flash")


@MASKED
def test_samples_are_fresh_and_always_the_same(masked: bool) -> None:
    one, other = (Sample.of(SHAPE, CPU, torch.bfloat16, masked=masked) for _ in range(2))
    for name in ("q", "k", "v", "gradient"):
        x = getattr(one, name)
        assert x.equal(getattr(other, name))
        assert x.dtype == torch.bfloat16
        assert abs(float(x.float().std()) - 1) < 0.1
    assert one.q.shape == one.gradient.shape == (2, 50, 4, 16)
    assert one.k.shape == one.v.shape == (2, 50, 2, 16)
    assert (one.documents is not None) == masked
    if one.documents is not None and other.documents is not None:
        assert one.documents.ids.equal(other.documents.ids)
        assert one.documents.ids.max() > 0


def test_errors_are_those_of_the_kernel() -> None:
    """A hundredth for what is a hundredth too large, and some thousandths for bfloat16."""
    sample = Sample.of(SHAPE, CPU, torch.float32, masked=True)
    found = trial.errors(Broken(lambda q, k, v, m: 1.01 * plain(q, k, v, m)), sample)
    assert found == pytest.approx(dict.fromkeys(("output", "dq", "dk", "dv"), 0.01), rel=1e-3)
    halved = trial.errors(plain, sample.to(torch.bfloat16))
    assert all(1e-4 < error < 1e-2 for error in halved.values())


@pytest.mark.parametrize(
    ("capability", "first"),
    [((8, 0), "fa2"), ((9, 0), "fa3"), ((10, 0), "fa4"), ((12, 0), "fa2")],
)
def test_order_by_device(
    capability: tuple[int, int], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    device = torch.device("cuda")
    masked, not_masked = (candidates(device, masked=m) for m in (True, False))
    assert masked[0] == not_masked[0] == first
    assert masked[-1] == not_masked[-1] == "math"
    assert "flex" in masked
    assert tuple(name for name in masked if name != "flex") == not_masked


def test_the_fastest_wins_unless_it_is_as_good_as_a_tie() -> None:
    timed = {"cudnn": 1.0, "fa2": 0.98, "flash": 1.5}
    assert winner(timed, {"fa3": "not installed"}) == Choice(
        "cudnn",
        {"fa3": "not installed", "fa2": "no faster: 0.98x", "flash": "slower: 1.50x"},
        timed,
    )
    assert winner(timed | {"fa2": 0.8}, {}).name == "fa2"
    assert winner(timed | {"fa2": 0.8}, {}).why_not == {
        "cudnn": "slower: 1.25x",
        "flash": "slower: 1.88x",
    }


def test_a_trial_is_small_but_ragged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole blocks and a rest, as at the real length; the same heads to a group; few of them."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Watched(ScaledDotProduct):
        def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
            seen.append((q, k))
            return super().__call__(q, k, v, mask)

    inject(monkeypatch, "math", Watched("math", torch.nn.attention.SDPBackend.MATH))
    for length in (100_003, 7):
        shape = Shape(batch=64, length=length, heads=48, kv_heads=6, head_dim=16)
        choose("math", shape, CPU, torch.float32, masked=True)
        q, k = seen[-1]
        assert q.shape == (2, 2 * 32 + length % 32, 16, 16)
        assert k.shape == (2, 2 * 32 + length % 32, 2, 16)


def test_timed_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is timed and who wins, with made-up times; the timing itself needs a GPU."""
    memory = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64 GiB\ntraceback")
    times = {"fa3": memory, "cudnn": 2.0, "fa4": 1.0, "flash": 3.0, "efficient": 4.0}
    shapes: list[Shape] = []

    def sample(shape: Shape, *_: Any, masked: bool) -> Any:
        assert masked
        shapes.append(shape)

    def seconds(kernel: Backend, _sample: None) -> float:
        found = times[kernel.name]
        if isinstance(found, Exception):
            raise found
        return found

    def refusal(name: str, *_: Any, masked: bool) -> str | None:
        assert masked
        return None if name in {*times, "math"} else "not today"

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.random, "fork_rng", lambda _devices: contextlib.nullcontext())
    monkeypatch.setattr(torch, "autocast", lambda *_, enabled: contextlib.nullcontext())
    monkeypatch.setattr(trial.Sample, "of", sample)
    monkeypatch.setattr(trial, "seconds", seconds)
    monkeypatch.setattr(trial, "refusal", refusal)
    found = choose("auto", SHAPE, torch.device("cuda"), torch.bfloat16, masked=True)
    assert found == Choice(
        "fa4",
        {
            "fa3": "CUDA out of memory. Tried to allocate 64 GiB",
            "fa2": "not today",
            "flex": "not today",
            "cudnn": "slower: 2.00x",
            "flash": "slower: 3.00x",
            "efficient": "slower: 4.00x",
        },
        {"cudnn": 2.0, "fa4": 1.0, "flash": 3.0, "efficient": 4.0},
    )
    assert set(shapes) == {Shape(1, 50, 4, 2, 16)}
    times.clear()
    times["math"] = 5.0
    alone = choose("auto", SHAPE, torch.device("cuda"), torch.bfloat16, masked=True)
    assert (alone.name, alone.seconds) == ("math", {"math": 5.0})

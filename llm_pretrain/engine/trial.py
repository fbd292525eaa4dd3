"""Which attention kernel a run takes: tried on random inputs before it is trusted, on CUDA timed.

Dimensions: B sequences, T positions, H query heads, G key and value heads, D size of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from llm_pretrain.errors import UserError
from llm_pretrain.model.attention import Backend, Documents, backend, documents_of
from llm_pretrain.model.flash import PACKAGES, MissingKernelError

NO_MATTER = 1.03
"""An earlier kernel wins over a later one that is faster by less than this: it is noise."""
KERNELS = ("fa3", "cudnn", "fa4", "fa2", "flash", "flex", "efficient", "math")
"""All there are."""
_HOPPER = KERNELS
_BLACKWELL = ("fa4", "cudnn", "fa2", "flash", "flex", "efficient", "math")
_OTHER = ("fa2", "flash", "cudnn", "flex", "efficient", "math")
_CPU = ("flash", "math")
"""By published speed."""
_ONLY_CUDA = ("cudnn", "efficient", *PACKAGES)
_ONLY_16_BITS = ("cudnn", "flash", *PACKAGES)
"""On CUDA."""
_BLOCK = {"cpu": 32, "cuda": 128}
"""Positions that a kernel works on at a time; a trial has two such blocks and a rest."""
_WARMUP, _REPETITIONS = 3, 5
_TOLERANCE = {torch.float32: 1e-5}
"""Relative errors; 1e-2 with 16 bits."""
_CEILING = 0.05
"""No relative error above this passes, however bad the plain computation is."""


@dataclass(frozen=True)
class Shape:
    """Of attention's inputs on this rank: B, T, H, G, D."""

    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Choice:
    """The kernel to take, and what became of the others."""

    name: str
    why_not: dict[str, str] = field(default_factory=dict)
    """A short reason for each that comes earlier in the order of this device, or was timed."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Forward and backward pass of one sequence, of those that were timed."""


@dataclass(frozen=True)
class Sample:
    """Random inputs, the gradient of their output, and documents if attention is masked."""

    q: Tensor
    k: Tensor
    v: Tensor
    gradient: Tensor
    documents: Documents | None

    @classmethod
    def of(
        cls,
        shape: Shape,
        device: torch.device,
        dtype: torch.dtype,
        *,
        masked: bool,
        seed: int = 0,
    ) -> "Sample":
        """Always the same for the same arguments; no global generator is touched."""
        s = shape
        generator = torch.Generator(device).manual_seed(seed)

        def normal(heads: int) -> Tensor:
            size = s.batch, s.length, heads, s.head_dim
            return torch.randn(size, generator=generator, device=device).to(dtype)

        tensors = normal(s.heads), normal(s.kv_heads), normal(s.kv_heads), normal(s.heads)
        documents = None
        if masked:
            host = torch.Generator().manual_seed(seed)
            tokens = torch.randint(max(2, s.length // 4), (s.batch, s.length), generator=host)
            tokens[0, s.length // 3] = 0
            documents = documents_of(tokens, 0).to(device)
        return cls(*tensors, documents)

    def to(self, dtype: torch.dtype) -> "Sample":
        """The same values, converted."""
        q, k, v, gradient = (x.to(dtype) for x in (self.q, self.k, self.v, self.gradient))
        return Sample(q, k, v, gradient, self.documents)


def choose(
    asked: str, shape: Shape, device: torch.device, dtype: torch.dtype, *, masked: bool
) -> Choice:
    """The kernel for `model.attention: asked`, after a short trial.

    On CUDA the fastest wins, so ranks may choose differently: let one choose for all. `dtype`: that
    of queries, keys and values, under autocast its. `masked`: whether documents are kept apart.

    Raises:
        UserError: the kernel asked for is missing, fails or is wrong; or, for auto, all are.
    """
    with _undisturbed(device):
        if asked == "auto":
            return _fastest(shape, device, dtype, masked)
        reason = refusal(asked, shape, device, dtype, masked=masked)
        if reason is None:
            return Choice(asked)
        others = (name for name in candidates(device, masked=masked) if name != asked)
        fine = [n for n in others if refusal(n, shape, device, dtype, masked=masked) is None]
        valid = f"auto or one of {', '.join(fine)}" if fine else "auto"
        raise UserError(f"model.attention: {asked} cannot be used: {reason}; use {valid}")


def candidates(device: torch.device, *, masked: bool) -> tuple[str, ...]:
    """The kernels for auto, in order of their published speed on such a device.

    Without documents flex has nothing to skip that others do not.
    """
    if device.type != "cuda":
        return _CPU
    major, _ = torch.cuda.get_device_capability(device)
    order = {9: _HOPPER, 10: _BLACKWELL}.get(major, _OTHER)
    return tuple(name for name in order if masked or name != "flex")


def refusal(
    name: str, shape: Shape, device: torch.device, dtype: torch.dtype, *, masked: bool
) -> str | None:
    """Why the kernel cannot be used for this; None if it can."""
    cuda = device.type == "cuda"
    try:
        kernel = backend(name)
        kernel.mask(None, 1)  # imports packages
        if not cuda and name in _ONLY_CUDA:
            return "it needs a CUDA device"
        if cuda and dtype == torch.float32 and name in _ONLY_16_BITS:
            return "it takes no float32"
        return _defect(kernel, Sample.of(_small(shape, device), device, dtype, masked=masked))
    except MissingKernelError as error:
        return error.reason
    except Exception as error:  # noqa: BLE001  # kernels raise what they like
        return _first_line(error)


def _defect(kernel: Backend, sample: Sample) -> str | None:
    """What is wrong with the kernel's numbers; raises what the kernel raises."""
    dtype = sample.q.dtype
    found = errors(kernel, sample)
    if _within(found, _TOLERANCE.get(dtype, 1e-2)):
        return None
    # What the plain computation itself is off, for instance with TF32.
    plain = max(errors(backend("math"), sample).values())
    if _within(found, min(2 * plain, _CEILING)):
        return None
    if sample.documents is not None:
        without = errors(kernel, sample, replace(sample, documents=None))
        if _within(without, _CEILING):
            return "it ignores the mask"
    worst = max(found, key=lambda part: (found[part] != found[part], found[part]))
    return f"it is wrong: relative error {found[worst]:.1e} of {worst}"


def run(kernel: Backend, sample: Sample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output (B, T, H, D), and the gradients of q, k and v."""
    q, k, v = _leaves(sample)
    y = kernel(q, k, v, kernel.mask(sample.documents, q.shape[1]))
    dq, dk, dv = torch.autograd.grad(y, (q, k, v), sample.gradient)
    return y.detach(), dq, dk, dv


def errors(kernel: Backend, sample: Sample, truth: Sample | None = None) -> dict[str, float]:
    """Frobenius norms of what is wrong with output, dq, dk and dv, relative to what is right.

    Right is what the plain computation in float64 makes of `truth`, by default of `sample` itself.
    """
    right = run(backend("math"), (truth or sample).to(torch.float64))
    poison(sample)
    found = run(kernel, sample)
    return {
        part: float(torch.linalg.vector_norm(f - r) / torch.linalg.vector_norm(r))
        for part, f, r in zip(("output", "dq", "dk", "dv"), found, right, strict=True)
    }


def poison(sample: Sample) -> None:
    """Leave NaN in the memory that is given out next, so that what a kernel does not write shows.

    Else it may find the numbers of the kernel before, which are right.
    """
    inputs = (sample.q, sample.k, sample.v, sample.gradient)
    held = [torch.full_like(x, torch.nan) for x in inputs for _ in range(2)]
    del held


def seconds(kernel: Backend, sample: Sample) -> float:
    """Of a forward and backward pass on CUDA, the shortest of a few; the mask is made before."""
    q, k, v = _leaves(sample)
    mask = kernel.mask(sample.documents, q.shape[1])
    times: list[float] = []
    for _ in range(_WARMUP + _REPETITIONS):
        begin, end = torch.cuda.Event(True), torch.cuda.Event(True)  # type: ignore[no-untyped-call]
        begin.record()
        torch.autograd.grad(kernel(q, k, v, mask), (q, k, v), sample.gradient)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return min(times[_WARMUP:])


def _fastest(shape: Shape, device: torch.device, dtype: torch.dtype, masked: bool) -> Choice:
    why_not, timed = dict[str, str](), dict[str, float]()
    for name in candidates(device, masked=masked):
        if name == "math" and timed:
            break  # It keeps all scores: never faster, and at real lengths there may be no room.
        reason = refusal(name, shape, device, dtype, masked=masked)
        if reason is None and device.type != "cuda":
            # Not timed: by time, one process could choose otherwise than the next.
            return Choice(name, why_not)
        if reason is None:
            try:
                sample = Sample.of(replace(shape, batch=1), device, dtype, masked=masked)
                timed[name] = seconds(backend(name), sample)
            except Exception as error:  # noqa: BLE001  # most likely memory
                reason = _first_line(error)
        if reason is not None:
            why_not[name] = reason
    if not timed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in why_not.items())
        raise UserError(f"model.attention: no kernel can be used: {reasons}")
    return winner(timed, why_not)


def winner(timed: dict[str, float], why_not: dict[str, str]) -> Choice:
    """The first in order of those that are as good as the fastest; the rest joins `why_not`."""
    best = min(timed.values())
    name = next(n for n, time in timed.items() if time <= NO_MATTER * best)
    ratios = {n: time / timed[name] for n, time in timed.items() if n != name}
    slower = {
        n: f"slower: {ratio:.2f}x" if ratio >= 1 else f"no faster: {ratio:.2f}x"
        for n, ratio in ratios.items()
    }
    return Choice(name, why_not | slower, timed)


def _leaves(sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x.detach().requires_grad_() for x in (sample.q, sample.k, sample.v))
    return q, k, v


def _small(shape: Shape, device: torch.device) -> Shape:
    """A cheap shape that asks the same of a kernel: head size, grouping, and a ragged end."""
    block = _BLOCK[device.type]
    kv_heads = min(shape.kv_heads, 2)
    return Shape(
        batch=2,
        # Not less for short sequences: where a token sees itself only, gradients of q are 0.
        length=2 * block + shape.length % block,
        heads=kv_heads * (shape.heads // shape.kv_heads),
        kv_heads=kv_heads,
        head_dim=shape.head_dim,
    )


def _within(found: dict[str, float], tolerance: float) -> bool:
    """Not for NaN."""
    return all(error <= tolerance for error in found.values())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """The caller's generators, autocast and gradient mode neither matter nor change."""
    cuda = device.type == "cuda"
    with (
        torch.random.fork_rng([device] if cuda else []),
        torch.autocast(device.type, enabled=False),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield
    if cuda:
        torch.cuda.empty_cache()

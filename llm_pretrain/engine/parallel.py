"""How the transformer is cut over a mesh: matrices, sequences, then parameters by FSDP2."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleInputOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from llm_pretrain.config.engine import EngineConfig
from llm_pretrain.config.layout import Layout
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.model.transformer import Transformer
from llm_pretrain.world import World

SEQUENCE = Shard(1)
"""Between the matrices, activations (B, T, C) are cut along T."""


def distribute(
    model: Transformer, config: TrainConfig, world: World, context: DeviceMesh | None
) -> None:
    """Replace the parameters of `model`, which may be on the meta device, by their parts.

    `context`: the `context_mesh` where sequences are cut, else None.
    """
    layout, kind = world.layout, world.device.type
    mesh = init_device_mesh(
        kind,
        # Ranks that share a sequence differ in gradients, so for FSDP they are shards like others.
        (layout.replicate, layout.shard * layout.context, layout.tensor),
        mesh_dim_names=("replicate", "shard", "tensor"),
    )
    if layout.tensor > 1:
        split_matrices(model, mesh["tensor"])
    if context is not None:
        split_sequences(model, context)
    copies = layout.replicate > 1
    shard(model, config, mesh["replicate", "shard"] if copies else mesh["shard"])


def context_mesh(layout: Layout, kind: str) -> DeviceMesh:
    """The ranks that share this rank's sequences and its part of the matrices, in order."""
    grid = torch.arange(layout.size).view(layout.data_size, layout.context, layout.tensor)
    groups = grid.transpose(1, 2).flatten(0, 1).tolist()
    own, _ = dist.new_subgroups_by_enumeration(groups)  # type: ignore[no-untyped-call]
    return DeviceMesh.from_group(own, kind, mesh_dim_names=("context",))


def split_sequences(model: Transformer, mesh: DeviceMesh) -> None:
    """Context parallelism as in DeepSpeed-Ulysses (Jacobs et al. 2023).

    Everything but attention works on a part of the positions; there an all-to-all exchange gives
    each rank all positions of a part of the heads, and another one takes it back.
    """
    positions, heads = Shard(1), Shard(2)  # of (B, T, H, D)
    exchange = PrepareModuleInputOutput(
        input_layouts=(*(positions,) * 3, None),
        desired_input_layouts=(*(heads,) * 3, None),
        use_local_input=True,
        output_layouts=heads,
        desired_output_layouts=positions,
    )
    model.parts = mesh.size()
    for block in model.blocks:
        parallelize_module(block, mesh, {"attention.mix": exchange})


def split_matrices(model: Transformer, mesh: DeviceMesh) -> None:
    """Tensor parallelism with sequence parallelism, as in Korthikanti et al. 2022.

    Queries, keys, values, gate and up are cut by output, their successors by input, embedding and
    head by vocabulary. Norms work on a part of the sequence.
    """
    plan: dict[str, ParallelStyle] = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=SEQUENCE),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(
            input_layouts=SEQUENCE, output_layouts=Shard(-1), use_local_output=False
        ),
    }
    parallelize_module(model, mesh, plan)
    model.tie()
    # The embedding's result is still on its way, a kind of tensor with which a compiled block
    # computes wrong gradients (seen with torch 2.13); a copy waits for it.
    model.embedding.register_forward_hook(lambda _module, _inputs, output: output.clone())
    for block in model.blocks:
        parallelize_module(block, mesh, _block_plan(model.config.qk_norm))


def _block_plan(qk_norm: bool) -> dict[str, ParallelStyle]:
    plan: dict[str, ParallelStyle] = {
        "attention_norm": SequenceParallel(),
        "attention": PrepareModuleInput(
            input_layouts=(SEQUENCE, None), desired_input_layouts=(Replicate(), None)
        ),
        "attention.q": ColwiseParallel(),
        "attention.k": ColwiseParallel(),
        "attention.v": ColwiseParallel(),
        "attention.out": RowwiseParallel(output_layouts=SEQUENCE),
        "mlp_norm": SequenceParallel(),
        "mlp": PrepareModuleInput(input_layouts=SEQUENCE, desired_input_layouts=Replicate()),
        "mlp.gate": ColwiseParallel(),
        "mlp.up": ColwiseParallel(),
        "mlp.down": RowwiseParallel(output_layouts=SEQUENCE),
    }
    if qk_norm:
        # (B, T, H, D): each rank normalizes its own heads.
        heads = SequenceParallel(sequence_dim=2, use_local_output=True)
        plan |= {"attention.q_norm": heads, "attention.k_norm": heads}
    return plan


def shard(model: Transformer, config: TrainConfig, mesh: DeviceMesh) -> None:
    """FSDP2: one group of parameters for each block, one for the rest.

    Gradients are averaged in float32. With bf16 the blocks' parameters travel in bfloat16, which is
    what their products round them to anyway (the norms' are rounded along); embedding, last norm
    and tied head stay exact. With fp8 too, so there a weight is rounded twice, to 8 bits at last.
    """
    engine = config.engine
    exact = _policy(None)
    products = _policy(torch.bfloat16) if config.precision.low else exact
    pinned = mesh.device_type == "cuda"
    offload = CPUOffloadPolicy(pin_memory=pinned) if engine.offload == "all" else OffloadPolicy()
    for block in model.blocks:
        fully_shard(
            block,
            mesh=mesh,
            mp_policy=products,
            offload_policy=offload,
            reshard_after_forward=engine.reshard_after_forward,
        )
    if not model.config.tied_embeddings:
        # Its backward pass comes right after its forward pass: gathered once, it serves both.
        fully_shard(
            model.head,
            mesh=mesh,
            mp_policy=products,
            offload_policy=offload,
            reshard_after_forward=False,
        )
    fully_shard(model, mesh=mesh, mp_policy=exact, offload_policy=offload)
    _prefetch(model, engine)


def _policy(parameters: torch.dtype | None) -> MixedPrecisionPolicy:
    # Inputs are not cast: RoPE's tables must stay float32.
    return MixedPrecisionPolicy(
        param_dtype=parameters, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def _prefetch(model: Transformer, engine: EngineConfig) -> None:
    """Ask for the parameters of the next blocks, forwards and backwards, ahead of time."""
    blocks: list[FSDPModule] = [b for b in model.blocks if isinstance(b, FSDPModule)]
    if engine.prefetch == 0:
        return
    for i, block in enumerate(blocks):
        block.set_modules_to_forward_prefetch(blocks[i + 1 : i + 1 + engine.prefetch])
        earlier = blocks[max(0, i - engine.prefetch) : i]
        block.set_modules_to_backward_prefetch(list(reversed(earlier)))

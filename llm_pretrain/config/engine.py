"""How a run is spread over devices, and what it trades for memory and speed."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from llm_pretrain.config.fields import RULES, Positive

Recompute = Literal["none", "selective", "block"]


@dataclass(config=RULES)
class EngineConfig:
    """How parameters and optimizer live on the devices. Ranks are numbered with `tensor` inside
    `context` inside `shard` inside `replicate`: neighbours split matrices, the farthest hold
    copies."""

    name: Literal["fsdp", "deepspeed"] = "fsdp"
    """fsdp: FSDP2 of torch; a single process runs the plain module. deepspeed: ZeRO, an extra to
    install. A run may change its engine whenever it stops."""
    replicate: Positive | None = None
    """fsdp: copies of the sharded state (HSDP). Null: 1, or what a given `shard` leaves."""
    shard: Positive | None = None
    """fsdp: parts of the batch for which one copy of parameters, gradients and moments is kept, cut
    over their ranks. Null: all that the others leave. 1: plain data parallelism. ZeRO cuts over
    all ranks."""
    context: Positive = 1
    """fsdp: ranks that share a sequence, for long ones: each works on a part, and for attention
    they exchange positions for heads (Ulysses). Parameters are cut over them too. The product of
    `context` and `tensor` must divide heads, kv_heads and sequence_length."""
    tensor: Positive = 1
    """fsdp: ranks that split each matrix of a block, and between the matrices the sequence. Within
    a node. Must divide heads, kv_heads, ffn, vocab_size and sequence_length."""
    zero_stage: Literal[1, 2, 3] = 2
    """deepspeed: what is cut over the ranks. 1: moments; 2: gradients too; 3: parameters too."""
    reshard_after_forward: bool = True
    """fsdp: free a block's gathered parameters after its forward pass and gather them again for the
    backward pass. False: more memory, a third less traffic."""
    accumulate: Literal["shards", "whole"] = "shards"
    """fsdp: what is kept between the passes of an update. shards: gradients are cut after every
    pass. whole: they are cut once, after the last; less traffic, but each rank keeps 4 bytes for
    every parameter that it does not split by `tensor`."""
    prefetch: Annotated[int, Field(ge=0)] = 0
    """fsdp: blocks whose parameters are asked for ahead of the one that runs. 0: torch's own way,
    which overlaps one."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What lives in host memory, where the update then happens. optimizer (deepspeed): moments and
    float32 master weights. all (fsdp, or deepspeed at zero_stage 3): parameters too. DeepSpeed's
    SuperOffload is not among them: it keeps moments where no checkpoint can read them."""
    offload_activations: bool = False
    """What blocks keep for the backward pass waits in pinned host memory. On Grace Hopper the way
    there has 450 GB/s in each direction; over PCIe it seldom pays. In bf16 without FSDP, autocast's
    copies of the weights travel along."""
    recompute: Recompute = "none"
    """What is computed again in the backward pass. selective: all of a block but its matrix
    products and attention; not at ZeRO's stage 3. block: all, from the block's input."""
    loss: Literal["auto", "plain", "chunked"] = "auto"
    """plain: all logits of a micro-batch at once, which with what the loss makes of them take 12
    bytes for each token and row of the vocabulary. chunked: up to 1 GiB of them at a time, forward
    and backward together. auto: chunked where that is more than one time, unless `tensor` cuts the
    vocabulary already."""
    compile: bool = False
    """torch.compile of each transformer block; minutes at start, faster steps after."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where present, else CPU."""
    timeout: Positive = 300
    """Seconds that a rank waits for the others in one operation before it gives up."""

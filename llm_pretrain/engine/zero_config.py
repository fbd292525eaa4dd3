"""What we ask of DeepSpeed: a version, and a configuration with every value written out."""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.errors import UserError
from llm_pretrain.model.flops import parameter_count

OLDEST = (0, 19, 8)
"""Before it, gradients that are no numbers had a finite norm, and an update in host memory could
start before the last gradient had arrived there."""

BUCKET = 50_000_000
"""Elements that one reduction or gather moves: 200 MB, enough to use a network fully."""


def require_deepspeed() -> None:
    """Raise UserError when DeepSpeed is missing or too old. Does not import it."""
    oldest = ".".join(map(str, OLDEST))
    try:
        found = version("deepspeed")
    except PackageNotFoundError:
        raise UserError(
            "engine: deepspeed is not installed; pip install 'llm-pretrain[deepspeed]', "
            "or use engine=fsdp"
        ) from None
    if tuple(map(int, re.findall(r"\d+", found)[:3])) < OLDEST:
        raise UserError(
            f"engine: deepspeed {found} is too old; pip install 'deepspeed>={oldest}', "
            "or use engine=fsdp"
        )


def zero_config(config: TrainConfig, device: str) -> dict[str, Any]:
    """The dictionary that `deepspeed.initialize` and `deepspeed.zero.Init` take.

    DeepSpeed's defaults changed between releases, so nothing that decides results, memory or
    traffic is left to them. Arithmetic is float32 throughout: neither its bf16 nor its
    torch_autocast section is used, since the first keeps gradients in bfloat16 and the second
    reduces them in it.

    Args:
        config: the run.
        device: type of the device that computes, "cpu" or "cuda".
    """
    return {
        # The training loop cuts micro-batches and says which is the last one of an update.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": True,
        "gradient_clipping": float(config.optimizer.grad_clip),
        "gradient_allreduce_op": "mean",
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": "fp32",
        "seq_parallel_communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "fp16": {"enabled": False},
        "bf16": {"enabled": False, "check_grad_overflow": False},
        "torch_autocast": {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero(config, device),
        **_silence(),
    }


def _zero(config: TrainConfig, device: str) -> dict[str, Any]:
    engine = config.engine
    pin = device == "cuda"
    optimizer = {"device": "cpu", "pin_memory": pin, "ratio": 1.0, "super_offload": False}
    return {
        "stage": engine.zero_stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": BUCKET,
        "use_multi_rank_bucket_allreduce": True,
        "allgather_partitions": True,
        "allgather_bucket_size": BUCKET,
        # At stages 1 and 2 it overlaps little, and releases kept finding races in it.
        "overlap_comm": engine.zero_stage == 3,
        "round_robin_gradients": False,
        "ignore_unused_parameters": False,
        "load_from_fp32_weights": True,
        "elastic_checkpoint": False,
        "offload_optimizer": None if engine.offload == "none" else optimizer,
        "offload_param": {"device": "cpu", "pin_memory": pin} if engine.offload == "all" else None,
        "zero_hpz_partition_size": 1,
        "zero_quantized_weights": False,
        "zero_quantized_nontrainable_weights": False,
        "zero_quantized_gradients": False,
        "override_module_apply": False,
        "enable_sanity_checks": False,
        "log_trace_cache_warnings": False,
        **_stage3(config),
    }


def _stage3(config: TrainConfig) -> dict[str, Any]:
    """What only stage 3 reads: norms stay whole, matrices only of the blocks in use and next."""
    model = config.model
    embeddings = model.vocab_size * model.width
    without = parameter_count(model) - embeddings * (1 if model.tied_embeddings else 2)
    block = without // model.layers
    return {
        # Otherwise each product of a weight keeps the gathered weight until its backward pass.
        "memory_efficient_linear": True,
        # The temporary copy of gradients that an update makes, if it can be done piece by piece.
        "sub_group_size": 2 * BUCKET,
        "stage3_param_persistence_threshold": model.width,
        "stage3_model_persistence_threshold": sys.maxsize,
        "stage3_prefetch_bucket_size": block,
        "stage3_max_live_parameters": 2 * block + embeddings,
        "stage3_max_reuse_distance": block,
        "stage3_module_granularity_threshold": 0,
        "stage3_use_all_reduce_for_fetch_params": False,
        "stage3_allgather_sequential": False,
        "stage3_gather_16bit_weights_on_model_save": False,
    }


def _silence() -> dict[str, Any]:
    """No timers, which wait for the device, no reports, no monitors that write files."""
    off = {"enabled": False}
    return {
        "steps_per_print": None,
        "dump_state": False,
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
        "flops_profiler": off,
        "comms_logger": off,
        "tensorboard": off,
        "wandb": off,
        "csv_monitor": off,
        "disable_python_gc": False,
    }

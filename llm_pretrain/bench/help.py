"""What `bench --help` says."""

from llm_pretrain.config.help import describe_read

_BENCH = """usage: llm-pretrain bench [KEY=VALUE ...] [--out FILE] [--steps N] [--trace FILE]
                                      [--config-dir DIR]

Measures what this machine can do and what training makes of it: matrix products (bf16, fp8),
copies, attention, one block, the head with its loss, and whole steps of the engine on random
tokens. Says tokens/s, TFLOP/s, MFU by both countings against the datasheet's peak and the measured
one, memory beside its estimate, where the time of a step goes, and where the host waits for the
device. It works on a CPU, too. On several devices it is started as training is:

  llm-pretrain bench model=llama_1b precision=bf16 data.micro_batch=4 data.sequence_length=4096
  torchrun --nproc-per-node 4 -m llm_pretrain.bench model=llama_8b precision=bf16

A step is one pass of data.micro_batch sequences on each device, unless data.global_batch or an
experiment is given. All else has the defaults of `train`.

--out FILE     for the JSON, with every figure, its unit and its samples: bench.json
--steps N      steps to time after three that do not count: ten, or as many as fit into 10 s
--trace FILE   keeps the profiler's trace of one step, for ui.perfetto.dev

Exit codes: 0 done; 1 another rank was lost; 2 bad input.
"""
_READ = ("model", "optimizer", "data", "precision", "engine")


def bench_help() -> str:
    """Help of `llm-pretrain bench`: the fields that it depends on; any other is allowed."""
    return "\n".join([_BENCH, *describe_read(_READ, "", "train")])

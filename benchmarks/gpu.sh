#!/usr/bin/env bash
# Measures one part of benchmarks/RESULTS.md, section "GPU", on a machine with one NVIDIA GPU.
#
#   bash benchmarks/gpu.sh PART [OUT_FOLDER]      default: runs/gpu
#
# PART leaves OUT_FOLDER/PART.json and OUT_FOLDER/PART.log. The minutes are guesses for an H100:
#
#   check     2   whether things work: what is chosen, 20 steps of training
#   speed    10   a step of 1B, 3B, 124M, 360M; compiled and not; each attention kernel; memory
#   peers     9   the same models by us and by Hugging Face's Llama, in one process
#   fp8       9   loss of 300 steps of 1B in fp8 against bf16; speed at 3B, 8B's blocks, 1B
#   profile   5   where the time of an update goes, at 1B, 3B, 124M
#   study     9   study=gpu_mini: sizes of 10M to 100M, cooldowns to four horizons, the law
#
# No part begins anything after 8:50, and what still runs after 9:35 is ended. What was left out is
# said at the end and in the JSON; take it in another call, with other files to keep:
#
#   ITEMS='fa|flex' bash benchmarks/gpu.sh speed runs/more      items whose name has a match
#   python -m benchmarks.gpu table [--write] runs/gpu runs/more
#
# QUICK=1: tiny settings that run on a CPU within two minutes for all parts, to try the script.
#
# WHEELS=FOLDER: wheels to install first, without network and not into the machine's own Python
# (pip install --no-index --no-deps --target). Beside torch, triton, numpy, tokenizers, safetensors,
# transformers, pyarrow, rich, tqdm, pyyaml, packaging and cloudpickle the parts import:
#
#   every part   hydra-core omegaconf antlr4-python3-runtime pydantic pydantic-core
#                annotated-types typing-inspection typing-extensions
#   study        submitit, scipy (the law; without it only the losses)
#   fp8          torchao, or transformer-engine
#   attention    flash-attn, flash-attn-3 or flash-attn-4 for the kernels of these names
#
# omegaconf needs the antlr4-python3-runtime that it names, of which there is no wheel: build one.
# pydantic-core is not pure Python: take the one for the machine's Python and processor. Not needed:
# datasets, wandb, deepspeed, matplotlib, plotly. In a folder
# of wheels made elsewhere:
#
#   pip download --no-deps --only-binary=:all: --python-version 3.12 \
#     --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 -d FOLDER NAME==VERSION ...
#   pip wheel --no-deps -w FOLDER antlr4-python3-runtime==4.9.3
#
# PYTHON names the interpreter (default: python3).
set -euo pipefail

GPU_BEGAN=$(date +%s)
export GPU_BEGAN
if (($# < 1 || $# > 2)); then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
part=$1
out=$(realpath -m -- "${2:-runs/gpu}")
python=${PYTHON:-python3}
if [[ -n ${WHEELS:-} ]]; then
  wheels=$(realpath -- "$WHEELS")
fi
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

if [[ -n ${WHEELS:-} ]]; then
  # Named after what is in it: installed once for several calls on the same machine.
  digest=$(cd -- "$wheels" && printf '%s\n' ./*.whl | sha256sum | cut -c1-16)
  site=${TMPDIR:-/tmp}/llm-pretrain-wheels-$digest
  if [[ ! -f $site/.complete ]]; then
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
      --no-compile --upgrade --target "$site" "$wheels"/*.whl
    touch "$site/.complete"
  fi
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONUNBUFFERED=1
exec "$python" -m benchmarks.gpu "$part" "$out"

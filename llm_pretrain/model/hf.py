"""Checkpoints of Hugging Face's Llama: export to a folder transformers opens, and import."""

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llm_pretrain.atomic import publish_folder
from llm_pretrain.config.schema import ModelConfig
from llm_pretrain.errors import UserError
from llm_pretrain.model.llama_config import from_llama, to_llama
from llm_pretrain.model.transformer import Transformer

_BLOCK_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_HEAD = "head.weight"
_EMBEDDING = "embedding.weight"


def export_hf(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    directory: Path,
    *,
    end_of_text_id: int | None = None,
    max_positions: int,
) -> None:
    """Write a LlamaForCausalLM folder (model.safetensors, config.json) that appears whole.

    Args:
        config: the model; without qk_norm, which Llama's format cannot hold.
        state: whole tensors under the names of `Transformer`; "head.weight" may be left out when
            embeddings are tied. Their dtype is kept.
        directory: the folder to create; it must not exist.
        end_of_text_id: token that ends a document, hence also the one that precedes it.
        max_positions: longest sequence, in tokens, that the model is meant for.

    Raises:
        UserError: the folder exists, the format cannot hold the model, or `state` is not its.
    """
    if directory.exists():
        raise UserError(f"{directory}: exists already; export to a new folder")
    content = to_llama(config, end_of_text_id, max_positions)
    names = _names(config)
    _check_state(config, state)
    tensors = {theirs: state[ours].detach().cpu().contiguous() for ours, theirs in names.items()}
    dtype = str(tensors[names[_EMBEDDING]].dtype).removeprefix("torch.")
    content |= {"dtype": dtype, "torch_dtype": dtype}  # for transformers 5 and 4
    _write(directory, tensors, content)


def import_hf(directory: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read a LlamaForCausalLM folder with one or several safetensors files.

    Returns:
        The config, and CPU tensors in the dtype of the files under all names of
        `Transformer.state_dict()`. With tied embeddings both names hold the same tensor.

    Raises:
        UserError: a file is missing or unreadable, or the model is not one that `Transformer`
            computes; the message names the field and its value.
    """
    path = directory / "config.json"
    config = from_llama(_read_json(path), path)
    names = _names(config)
    files = _tensor_files(directory)
    if "lm_head.weight" in files:
        names[_HEAD] = "lm_head.weight"
    wanted = set(names.values())
    # Old conversions of Llama carry RoPE's frequencies, which follow from rope_theta.
    found = {name for name in files if not name.endswith(".rotary_emb.inv_freq")}
    _compare_names(directory, found, wanted)
    tensors = _load(files, wanted)
    state = {ours: tensors[theirs] for ours, theirs in names.items()}
    _check_state(config, state)
    if config.tied_embeddings:
        state[_HEAD] = state[_EMBEDDING]
    return config, state


def _names(config: ModelConfig) -> dict[str, str]:
    """Our name -> their name, for each tensor in the file."""
    names = {_EMBEDDING: "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    for i in range(config.layers):
        for ours, theirs in _BLOCK_NAMES.items():
            names[f"blocks.{i}.{ours}.weight"] = f"model.layers.{i}.{theirs}.weight"
    if not config.tied_embeddings:
        names[_HEAD] = "lm_head.weight"
    return names


def _check_state(config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        expected = Transformer(config).state_dict()
    required = set(expected)
    if config.tied_embeddings and _HEAD not in state:
        required.remove(_HEAD)
    _compare_names("state", set(state), required)
    for name in sorted(required):
        if state[name].shape != expected[name].shape:
            raise UserError(
                f"{name}: shape {tuple(state[name].shape)} does not fit the config, which needs "
                f"{tuple(expected[name].shape)}"
            )
    embedding, head = state[_EMBEDDING], state.get(_HEAD)
    if not config.tied_embeddings or head is None or head.data_ptr() == embedding.data_ptr():
        return
    if not torch.equal(head, embedding):
        raise UserError(
            "tied_embeddings: true, but the output head differs from the embedding; set it to "
            "false (tie_word_embeddings in a config.json) if they were trained apart"
        )


def _compare_names(where: object, found: set[str], wanted: set[str]) -> None:
    for problem, names in (("missing", wanted - found), ("unexpected", found - wanted)):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise UserError(f"{where}: {len(names)} tensors {problem}: {some}")


def _write(directory: Path, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir()
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "config.json").write_text(json.dumps(content, indent=2) + "\n")
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        published = publish_folder(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not published:
        raise UserError(f"{directory}: was created by somebody else meanwhile")


def _tensor_files(directory: Path) -> dict[str, Path]:
    """Name of each tensor -> file that holds it."""
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.is_file():
        with _open(single) as file:
            return dict.fromkeys(file.keys(), single)
    if not index.is_file():
        raise UserError(f"{directory}: has neither {single.name} nor {index.name}")
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{index}: weight_map is missing")
    outside = [name for name in weight_map.values() if Path(name).name != name]
    if outside:
        raise UserError(f"{index}: weight_map names {outside[0]!r}, which is not in the folder")
    return {tensor: directory / name for tensor, name in weight_map.items()}


def _load(files: dict[str, Path], wanted: set[str]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in sorted({files[name] for name in wanted}):
        with _open(path) as file:
            mine = sorted(name for name in wanted if files[name] == path)
            _compare_names(path, set(file.keys()) & set(mine), set(mine))
            tensors |= {name: file.get_tensor(name) for name in mine}
    return tensors


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object")
    return content

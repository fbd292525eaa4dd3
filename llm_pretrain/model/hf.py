"""Checkpoints of Hugging Face's Llama: export to a folder transformers opens, and import."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llm_pretrain import atomic
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
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""Tensors of one file, as Hugging Face's libraries cut them."""


def check_export(config: ModelConfig, directory: Path) -> None:
    """Raise UserError when `directory` exists or Llama's format cannot hold the model."""
    if directory.exists():
        raise UserError(f"{directory}: exists already; export to a new folder")
    to_llama(config, None, 0)


def export_hf(
    config: ModelConfig,
    described: Mapping[str, Tensor],
    read: Callable[[list[str]], Mapping[str, Tensor]],
    directory: Path,
    *,
    end_of_text_id: int | None = None,
    max_positions: int,
    shard_bytes: int = SHARD_BYTES,
    extras: Mapping[str, Path] | None = None,
) -> None:
    """Write a LlamaForCausalLM folder that appears whole, one file with tensors after the other.

    Args:
        config: the model; without qk_norm, which Llama's format cannot hold.
        described: tensors of the shape and dtype that `read` gives, such as meta tensors, under the
            names of `Transformer`; "head.weight" may be left out when embeddings are tied.
        read: called for each file with the names in it; the tensors, which are then dropped.
        directory: the folder to create; it must not exist.
        end_of_text_id: token that ends a document, hence also the one that precedes it.
        max_positions: longest sequence, in tokens, that the model is meant for.
        shard_bytes: size of the tensors in one file, at most, unless a single one is larger. All in
            one file make model.safetensors; several are numbered and have an index.
        extras: name -> file to be copied into the folder.

    Raises:
        UserError: the folder exists or cannot be written, the format cannot hold the model, or
            the tensors are not its.
    """
    check_export(config, directory)
    content = to_llama(config, end_of_text_id, max_positions)
    _check_shapes(config, described)
    if config.tied_embeddings and _HEAD in described:
        both = read([_EMBEDDING, _HEAD])
        _check_tie(both[_EMBEDDING], both[_HEAD])
        del both
    dtype = str(described[_EMBEDDING].dtype).removeprefix("torch.")
    content |= {"dtype": dtype, "torch_dtype": dtype}  # for transformers 5 and 4
    with _appearing(directory) as folder:
        _write_tensors(folder, llama_names(config), described, read, shard_bytes)
        _write_json(folder / "config.json", content)
        for name, path in (extras or {}).items():
            shutil.copyfile(path, folder / name)


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
    names = llama_names(config)
    files = _tensor_files(directory)
    if "lm_head.weight" in files:
        names[_HEAD] = "lm_head.weight"
    wanted = set(names.values())
    # Old conversions of Llama carry RoPE's frequencies, which follow from rope_theta.
    found = {name for name in files if not name.endswith(".rotary_emb.inv_freq")}
    _compare_names(directory, found, wanted)
    tensors = _load(files, wanted)
    state = {ours: tensors[theirs] for ours, theirs in names.items()}
    _check_shapes(config, state)
    if config.tied_embeddings and _HEAD in state:
        _check_tie(state[_EMBEDDING], state[_HEAD])
    if config.tied_embeddings:
        state[_HEAD] = state[_EMBEDDING]
    return config, state


def llama_names(config: ModelConfig) -> dict[str, str]:
    """Our name -> their name, for each tensor in the file."""
    names = {_EMBEDDING: "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    for i in range(config.layers):
        for ours, theirs in _BLOCK_NAMES.items():
            names[f"blocks.{i}.{ours}.weight"] = f"model.layers.{i}.{theirs}.weight"
    if not config.tied_embeddings:
        names[_HEAD] = "lm_head.weight"
    return names


def _check_shapes(config: ModelConfig, state: Mapping[str, Tensor]) -> None:
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


def _check_tie(embedding: Tensor, head: Tensor) -> None:
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


@contextmanager
def _appearing(directory: Path) -> Iterator[Path]:
    """A folder that takes the name `directory` when the block ends without an error."""
    temporary = atomic.temporary_beside(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        atomic.remove_leftovers(directory.parent)
        temporary.mkdir()
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        published = atomic.publish_folder(temporary, directory)
    except SafetensorError as error:
        # How the library passes on what the operating system said.
        raise UserError(f"{directory}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not published:
        raise UserError(f"{directory}: was created by somebody else meanwhile")


def _write_tensors(
    folder: Path,
    names: Mapping[str, str],
    described: Mapping[str, Tensor],
    read: Callable[[list[str]], Mapping[str, Tensor]],
    limit: int,
) -> None:
    """Write the tensors of `names`, ours -> theirs, and an index when they need several files."""
    parts = _parts({name: described[name].nbytes for name in names}, limit)
    weight_map: dict[str, str] = {}
    for i, part in enumerate(parts, 1):
        file = f"model-{i:05d}-of-{len(parts):05d}.safetensors" if len(parts) > 1 else _SINGLE
        _write_part(folder / file, {name: names[name] for name in part}, read)
        weight_map |= {names[name]: file for name in part}
    if len(parts) > 1:
        total = sum(described[name].nbytes for name in names)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / _INDEX, index)


def _parts(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """The names in their order, cut so that the sizes of a part sum up to `limit` at most."""
    parts: list[list[str]] = []
    room = -1
    for name, size in sizes.items():
        if not parts or size > room:
            parts.append([])
            room = limit
        parts[-1].append(name)
        room -= size
    return parts


def _write_part(
    path: Path, names: Mapping[str, str], read: Callable[[list[str]], Mapping[str, Tensor]]
) -> None:
    """One file. A function of its own, so that its tensors are gone before others are read."""
    tensors = read(list(names))
    theirs = {names[name]: tensors[name].detach().cpu().contiguous() for name in names}
    save_file(theirs, path, metadata={"format": "pt"})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _tensor_files(directory: Path) -> dict[str, Path]:
    """Name of each tensor -> file that holds it."""
    index, single = directory / _INDEX, directory / _SINGLE
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

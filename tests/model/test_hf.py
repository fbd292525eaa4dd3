"""Exchange with transformers: equal logits in both directions, and refusals that name the field."""

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from llm_pretrain.config.schema import ModelConfig
from llm_pretrain.errors import UserError
from llm_pretrain.model.hf import export_hf, import_hf
from llm_pretrain.model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=151,
    width=48,
    layers=3,
    heads=6,
    kv_heads=2,
    head_dim=8,
    ffn=80,
    rope_theta=5000.0,
    norm_eps=1e-4,
    init_std=0.2,
)
TOKENS = torch.randint(151, (2, 40), generator=torch.Generator().manual_seed(0))

SHAPES = {
    "grouped, tied": {"kv_heads": 2, "tied_embeddings": True},
    "grouped, untied": {"kv_heads": 2, "tied_embeddings": False},
    "multi-head, wide heads": {"kv_heads": 6, "head_dim": 20, "tied_embeddings": False},
    "one key head, theta 500000": {"kv_heads": 1, "rope_theta": 500000.0},
}


def build(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    model.initialize(0)
    with torch.no_grad():  # norms of 1 would hide a swap between them
        for i, parameter in enumerate(model.parameters()):
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(i))
    return model


def assert_same_function(ours: Transformer, theirs: LlamaForCausalLM) -> None:
    with torch.no_grad():
        a, b = ours(TOKENS), theirs(TOKENS).logits
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert torch.equal(a.argmax(-1), b.argmax(-1))


def load_ours(directory: Path) -> Transformer:
    config, state = import_hf(directory)
    model = Transformer(config)
    model.load_state_dict(state)
    return model


def export(config: ModelConfig, state: dict[str, Tensor], directory: Path, **options: Any) -> None:
    """Export tensors that are all in memory."""

    def read(names: list[str]) -> dict[str, Tensor]:
        return {name: state[name] for name in names}

    export_hf(config, state, read, directory, **{"max_positions": 64, **options})


def exported(tmp_path: Path, config: ModelConfig = CONFIG, **options: Any) -> Path:
    directory = tmp_path / "hf"
    export(config, build(config).state_dict(), directory, **options)
    return directory


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 151,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "initializer_range": 0.2,
        **changes,
    }
    return LlamaForCausalLM(LlamaConfig(**settings)).eval()


def edit(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v != "ABSENT"}))


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_computes_the_same_from_an_export(name: str, tmp_path: Path) -> None:
    config = replace(CONFIG, **SHAPES[name])  # type: ignore[arg-type]
    model = build(config)
    directory = tmp_path / "new" / "folder"
    export(config, model.state_dict(), directory, end_of_text_id=150)
    theirs, info = LlamaForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert theirs.config.rope_parameters["rope_theta"] == config.rope_theta
    assert theirs.config.max_position_embeddings == 64
    assert theirs.generation_config.eos_token_id == 150
    assert theirs.dtype == torch.float32
    assert_same_function(model, theirs.eval())


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_computes_the_same_from_several_files(name: str, tmp_path: Path) -> None:
    config = replace(CONFIG, **SHAPES[name])  # type: ignore[arg-type]
    directory = exported(tmp_path, config, shard_bytes=20_000)
    theirs, info = LlamaForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same_function(build(config), theirs.eval())
    assert_same_function(load_ours(directory), theirs)


def test_several_files_are_as_hugging_face_lays_them_out(tmp_path: Path) -> None:
    """Names, index and limit, compared with what transformers itself makes of the model."""
    directory = exported(tmp_path, shard_bytes=20_000)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    theirs = tmp_path / "theirs"
    LlamaForCausalLM.from_pretrained(directory).save_pretrained(theirs, max_shard_size=20_000)
    index_theirs = json.loads((theirs / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == index_theirs["weight_map"].keys()
    assert index["metadata"]["total_size"] == index_theirs["metadata"]["total_size"]
    files = sorted(path.name for path in directory.glob("*.safetensors"))
    count = len(files)
    assert count > 3
    assert files == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for name in files:
        tensors = load_file(directory / name)
        assert all(index["weight_map"][tensor] == name for tensor in tensors)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 20_000
    assert set(index["weight_map"].values()) == set(files)


def test_one_file_when_all_fit_exactly(tmp_path: Path) -> None:
    size = sum(p.nbytes for p in build(CONFIG).parameters())
    directory = exported(tmp_path, shard_bytes=size)
    assert [p.name for p in directory.glob("model*")] == ["model.safetensors"]
    export(CONFIG, build(CONFIG).state_dict(), tmp_path / "two", shard_bytes=size - 1)
    assert len(list((tmp_path / "two").glob("model-*.safetensors"))) == 2


def test_the_tensors_of_a_file_are_gone_before_the_next_are_read(tmp_path: Path) -> None:
    state = {name: p.detach() for name, p in build(CONFIG).named_parameters()}
    described = {name: tensor.to("meta") for name, tensor in state.items()}
    alive: list[weakref.ref[Tensor]] = []
    sizes: list[int] = []

    def read(names: list[str]) -> dict[str, Tensor]:
        assert all(reference() is None for reference in alive)
        made = {name: state[name].clone() for name in names}
        alive.extend(weakref.ref(tensor) for tensor in made.values())
        sizes.append(sum(tensor.nbytes for tensor in made.values()))
        return made

    limit = max(tensor.nbytes for tensor in state.values())
    export_hf(CONFIG, described, read, tmp_path / "hf", max_positions=64, shard_bytes=limit)
    assert max(sizes) <= limit
    assert sum(sizes) == sum(tensor.nbytes for tensor in state.values())
    _, again = import_hf(tmp_path / "hf")
    assert all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False, "rms_norm_eps": 1e-3},
        {"num_key_value_heads": None, "head_dim": 12},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 321.0}},
    ],
    ids=["tied", "untied", "multi-head", "theta"],
)
def test_import_computes_what_transformers_saved(
    changes: dict[str, Any], shard_size: str, tmp_path: Path
) -> None:
    theirs = llama(**changes)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    files = list(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_size == "20KB")
    assert_same_function(load_ours(tmp_path), theirs)


def test_import_reads_the_keys_of_transformers_4(tmp_path: Path) -> None:
    theirs = llama(rope_parameters={"rope_type": "default", "rope_theta": 321.0})
    theirs.save_pretrained(tmp_path)
    edit(tmp_path, rope_parameters="ABSENT", rope_theta=321, rope_scaling=None, head_dim="ABSENT")
    assert_same_function(load_ours(tmp_path), theirs)


def test_export_has_the_keys_of_transformers_4_and_5(tmp_path: Path) -> None:
    content = json.loads((exported(tmp_path) / "config.json").read_text())
    assert content["rope_theta"] == CONFIG.rope_theta
    assert content["rope_scaling"] is None
    assert content["rope_parameters"] == {
        "rope_type": "default",
        "rope_theta": CONFIG.rope_theta,
    }
    assert content["torch_dtype"] == content["dtype"] == "float32"


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bitwise(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = replace(CONFIG, **SHAPES[name])  # type: ignore[arg-type]
    state = build(config).to(dtype).state_dict()
    export(config, state, tmp_path / "hf")
    config_again, state_again = import_hf(tmp_path / "hf")
    assert config_again == config
    assert state_again.keys() == state.keys()
    assert all(torch.equal(state[k], state_again[k]) for k in state)
    assert all(state_again[k].dtype == dtype for k in state)


def test_state_of_a_tied_model_needs_no_head(tmp_path: Path) -> None:
    model = build(CONFIG)
    state = {name: p.detach() for name, p in model.named_parameters()}
    assert "head.weight" not in state
    export(CONFIG, state, tmp_path / "hf")
    assert "lm_head.weight" not in load_file(tmp_path / "hf" / "model.safetensors")


class TestExportRefuses:
    def refusal(self, config: ModelConfig, state: dict[str, Tensor], directory: Path) -> str:
        with pytest.raises(UserError) as error:
            export(config, state, directory)
        return str(error.value)

    def test_qk_norm(self, tmp_path: Path) -> None:
        config = replace(CONFIG, qk_norm=True)
        message = self.refusal(config, build(config).state_dict(), tmp_path / "hf")
        assert "model.qk_norm" in message
        assert not list(tmp_path.iterdir())

    def test_existing_folder(self, tmp_path: Path) -> None:
        assert "exists" in self.refusal(CONFIG, build(CONFIG).state_dict(), tmp_path)

    def test_missing_unknown_and_misshapen_tensors(self, tmp_path: Path) -> None:
        state = build(CONFIG).state_dict()
        less = {k: v for k, v in state.items() if k != "blocks.1.mlp.up.weight"}
        assert "blocks.1.mlp.up.weight" in self.refusal(CONFIG, less, tmp_path / "hf")
        more = {**state, "blocks.3.mlp.up.weight": state["norm.weight"]}
        assert "unexpected: blocks.3.mlp.up" in self.refusal(CONFIG, more, tmp_path / "hf")
        bent = {**state, "norm.weight": torch.ones(7)}
        assert "norm.weight: shape (7,)" in self.refusal(CONFIG, bent, tmp_path / "hf")

    def test_a_head_that_came_loose(self, tmp_path: Path) -> None:
        state = {k: v.clone() for k, v in build(CONFIG).state_dict().items()}
        state["head.weight"][0, 0] += 1
        assert "tied_embeddings" in self.refusal(CONFIG, state, tmp_path / "hf")

    def test_failure_leaves_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise OSError("disk full")

        monkeypatch.setattr("llm_pretrain.model.hf.save_file", fail)
        with pytest.raises(OSError, match="disk full"):
            exported(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_appears_meanwhile_is_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = tmp_path / "hf"

        def save(*args: Any, **kwargs: Any) -> None:
            directory.mkdir()
            (directory / "mine").touch()
            save_file(*args, **kwargs)

        monkeypatch.setattr("llm_pretrain.model.hf.save_file", save)
        with pytest.raises(UserError, match="meanwhile"):
            exported(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["hf"]
        assert [p.name for p in directory.iterdir()] == ["mine"]


class TestImportRefuses:
    def test_biases_transformers_saved(self, tmp_path: Path) -> None:
        llama(attention_bias=True).save_pretrained(tmp_path)
        with pytest.raises(UserError, match="attention_bias=true"):
            import_hf(tmp_path)

    def test_missing_files(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"config\.json"):
            import_hf(tmp_path)
        directory = exported(tmp_path)
        (directory / "model.safetensors").unlink()
        with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
            import_hf(directory)

    def test_missing_shard(self, tmp_path: Path) -> None:
        llama().save_pretrained(tmp_path, max_shard_size="20KB")
        victim = sorted(tmp_path.glob("*.safetensors"))[1]
        victim.unlink()
        with pytest.raises(UserError, match=victim.name):
            import_hf(tmp_path)

    def test_index_that_leaves_the_folder(self, tmp_path: Path) -> None:
        llama().save_pretrained(tmp_path, max_shard_size="20KB")
        index = tmp_path / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        content["weight_map"]["model.norm.weight"] = "../elsewhere.safetensors"
        index.write_text(json.dumps(content))
        with pytest.raises(UserError, match="elsewhere"):
            import_hf(tmp_path)

    def test_damaged_weights(self, tmp_path: Path) -> None:
        directory = exported(tmp_path)
        weights = directory / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(UserError, match="cannot be read"):
            import_hf(directory)
        (directory / "config.json").write_text("{")
        with pytest.raises(UserError, match="cannot be read"):
            import_hf(directory)

    def test_tensors_that_do_not_fit_the_config(self, tmp_path: Path) -> None:
        directory = exported(tmp_path)
        edit(directory, num_hidden_layers=4)
        with pytest.raises(UserError, match="9 tensors missing"):
            import_hf(directory)
        edit(directory, num_hidden_layers=2)
        with pytest.raises(UserError, match="9 tensors unexpected"):
            import_hf(directory)
        edit(directory, num_hidden_layers=3, intermediate_size=81)
        with pytest.raises(UserError, match="shape"):
            import_hf(directory)

    def test_head_that_contradicts_the_tie(self, tmp_path: Path) -> None:
        directory = exported(tmp_path, replace(CONFIG, tied_embeddings=False))
        edit(directory, tie_word_embeddings=True)
        with pytest.raises(UserError, match="tie_word_embeddings"):
            import_hf(directory)


def test_import_accepts_an_equal_head_and_old_frequencies(tmp_path: Path) -> None:
    directory = exported(tmp_path)
    weights = directory / "model.safetensors"
    tensors = load_file(weights)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, weights, metadata={"format": "pt"})
    _, state = import_hf(directory)
    assert state["head.weight"] is state["embedding.weight"]
    assert state.keys() == build(CONFIG).state_dict().keys()

"""Peaks by exact names, fp8 by its own name, and floors against the closed form of operations."""

import pytest
import torch

from llm_pretrain.bench import rates
from llm_pretrain.bench.floor import product_flops
from llm_pretrain.bench.modules import attention_flops
from llm_pretrain.bench.step import utilisation
from llm_pretrain.config.compose import compose
from llm_pretrain.model.flops import flops_per_token
from llm_pretrain.train import hardware
from llm_pretrain.train.hardware import PEAK_BF16, PEAK_FP8, peak

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["NVIDIA H200 NVL", "NVIDIA H20", "H200", "NVIDIA GH200", ""])
def test_a_part_of_a_name_is_no_match(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "device_name", lambda device: name)
    found = peak(CPU, torch.bfloat16)
    assert found.source.startswith("measured bfloat16 matmul")
    assert name not in PEAK_FP8


def test_whole_names_have_dense_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, dense in (
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 120GB", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
    ):
        monkeypatch.setattr(hardware, "device_name", lambda device, name=name: name)
        assert peak(CPU, torch.bfloat16).flops == dense
        assert peak(CPU, torch.float32).source.startswith("measured float32")
    assert PEAK_BF16.keys() == PEAK_FP8.keys()
    # A number with sparsity would be twice or four times as large.
    for name, dense in PEAK_BF16.items():
        assert PEAK_FP8[name] / dense == pytest.approx(2, rel=2e-3)


def test_only_fp8_has_no_mfu() -> None:
    ask = ({"causal": 3e12}, 0.5, {"datasheet": 1e13})
    (plain,), (eight,) = utilisation(*ask, fp8=False), utilisation(*ask, fp8=True)
    assert plain["name"] == "mfu"
    assert eight["name"] == "utilisation relative to the bf16 peak"
    assert plain["value"] == eight["value"] == pytest.approx(0.6)


@pytest.mark.parametrize("recompute", ["none", "selective", "block"])
def test_products_and_attention_are_all_operations(recompute: str) -> None:
    config = compose(["model=llama_1b", f"engine.recompute={recompute}", "data.global_batch=32"])
    model, length = config.model, config.data.sequence_length
    tokens = 32 * length
    blocks, head = product_flops(config)
    again = blocks / 4 if recompute == "block" else 0
    attention = 3 * model.layers * attention_flops(model, length) * tokens
    whole = flops_per_token(model, length, causal=True) * tokens
    assert blocks - again + head + attention == whole


def test_the_fp8_product_is_called_as_torch_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # A CPU can multiply fp8, too, if slowly; on other devices than GPUs it is not measured.
    monkeypatch.setitem(rates._SIZES, "cpu", (64,))
    (figure,) = rates.fp8_matmuls(CPU)
    assert (figure.name, figure.unit) == ("fp8 matmul 64", "TFLOP/s")
    assert rates.no_fp8(CPU) == "not on this device: needs a GPU"
    assert rates.best([figure], "bf16") is None

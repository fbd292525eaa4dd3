"""The tokenizer: nothing is lost, nothing is random, and text cannot forge the end of text."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from llm_pretrain.config.data import DataConfig, SourceConfig, TokenizerConfig
from llm_pretrain.data import corpus
from llm_pretrain.data.corpus import held_out
from llm_pretrain.data.tokenizer import Tokenizer, load_tokenizer, read_tokenizer
from llm_pretrain.errors import UserError

END = "<|endoftext|>"


def config(cache: Path, **kwargs: object) -> DataConfig:
    options: dict[str, object] = {"vocab_size": 600, "train_bytes": 200_000} | kwargs
    return DataConfig(
        cache=str(cache),
        tokenizer=TokenizerConfig(**options),  # type: ignore[arg-type]
        sources={"library": SourceConfig(limit=60)},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(config(tmp_path_factory.mktemp("cache")))


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.text(alphabet="<|endoftx> \n\t\r\0é漢🙂"))
def test_round_trip(trained: Tokenizer, text: str) -> None:
    (ids,) = trained.encode_batch([text])
    assert trained.decode(ids.tolist()) == text
    assert ids.size == 0 or int(ids.max()) < trained.vocab_size


def test_every_byte_is_in_the_alphabet(trained: Tokenizer) -> None:
    vocabulary = set(trained.backend.get_vocab())
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= vocabulary
    assert len(vocabulary) == trained.vocab_size == 600
    assert trained.token_size == 2


def test_text_cannot_forge_the_end_of_text(trained: Tokenizer) -> None:
    (ids,) = trained.encode_batch([f"before{END}after"])
    assert trained.end_of_text_id not in ids.tolist()
    assert trained.decode([trained.end_of_text_id]) == END


def test_batches_do_not_change_the_ids(trained: Tokenizer) -> None:
    texts = [f"def f{i}(x):\n    return x ** {i}\n" * (i % 7) for i in range(200)]
    together = [ids.tolist() for ids in trained.encode_batch(texts)]
    assert together == [trained.encode_batch([text])[0].tolist() for text in texts]
    assert trained.encode_batch([]) == []


def test_training_is_deterministic_and_cached(
    trained: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = load_tokenizer(config(tmp_path))
    assert again.path.read_bytes() == trained.path.read_bytes()
    assert again.fingerprint == trained.fingerprint
    assert [p.name for p in again.path.parent.iterdir()] == ["tokenizer.json"]
    monkeypatch.delattr(corpus, "documents")  # a second call must not read text
    assert load_tokenizer(config(tmp_path)) == again
    with pytest.raises(AttributeError):
        load_tokenizer(config(tmp_path, vocab_size=700))


def text_source(path: Path, texts: list[str]) -> dict[str, SourceConfig]:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {"docs": SourceConfig(kind="text", format="json", path=str(path))}


def test_held_out_text_does_not_shape_the_tokenizer(tmp_path: Path) -> None:
    outcomes = []
    for i, secret in enumerate(("zebra ", "quagga ")):
        texts = [
            (secret if held_out(str(n), 0.2) else f"some words {n} and more ") * 50
            for n in range(40)
        ]
        assert any(secret in text for text in texts)
        made = load_tokenizer(
            DataConfig(
                cache=str(tmp_path / str(i)),
                validation_fraction=0.2,
                tokenizer=TokenizerConfig(vocab_size=400),
                sources=text_source(tmp_path / f"{i}.jsonl", texts),
            )
        )
        outcomes.append(made.fingerprint)
    assert outcomes[0] == outcomes[1]


def test_trains_on_the_first_bytes_only(tmp_path: Path) -> None:
    outcomes = []
    for i, tail in enumerate(("alpha ", "beta ")):
        sources = text_source(tmp_path / f"{i}.jsonl", ["é" * 51 + tail * 100, tail * 100])
        made = load_tokenizer(
            DataConfig(
                cache=str(tmp_path / str(i)),
                validation_fraction=1e-9,
                tokenizer=TokenizerConfig(vocab_size=300, train_bytes=101),  # half an é remains
                sources=sources,
            )
        )
        outcomes.append(made.fingerprint)
    assert outcomes[0] == outcomes[1]


def test_settings_of_a_given_tokenizer_do_not_cut_documents(
    trained: Tokenizer, tmp_path: Path
) -> None:
    backend = Backend.from_file(str(trained.path))
    backend.enable_truncation(4)
    backend.enable_padding(length=20)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, trained.end_of_text_id)]
    )
    backend.save(str(tmp_path / "given.json"))
    given_one = load_tokenizer(config(tmp_path, path=str(tmp_path / "given.json")))
    text = "import os, sys, collections, itertools"
    assert given_one.encode_batch([text])[0].tolist() == trained.encode_batch([text])[0].tolist()
    assert given_one.fingerprint != trained.fingerprint


def test_fingerprint_ignores_layout_of_the_json(trained: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "compact.json"
    path.write_text(json.dumps(json.loads(trained.path.read_text())))
    assert read_tokenizer(path, END).fingerprint == trained.fingerprint


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    words = {f"w{i}": i for i in range(3)} | {END: 70_000}
    backend = Backend(models.WordLevel(words, unk_token="w0"))
    backend.add_special_tokens([tokenizers.AddedToken(END, special=True)])
    backend.save(str(tmp_path / "wide.json"))
    wide = read_tokenizer(tmp_path / "wide.json", END)
    assert (wide.vocab_size, wide.token_size) == (70_001, 4)


def test_what_cannot_work_is_named(trained: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"data\.tokenizer\.end_of_text.*<eos>.*{trained.path.name}"
    ):
        load_tokenizer(config(tmp_path, path=str(trained.path), end_of_text="<eos>"))
    with pytest.raises(UserError, match=r"data\.tokenizer\.path.*absent\.json"):
        load_tokenizer(config(tmp_path, path=str(tmp_path / "absent.json")))
    for content in ("not json", "{}", '{"version": "1.0", "model": {"type": "Nonsense"}}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UserError, match=r"data\.tokenizer\.path.*bad\.json"):
            load_tokenizer(config(tmp_path, path=str(tmp_path / "bad.json")))
    tokens = {"t": SourceConfig(kind="tokens", path="p", validation_path="v")}
    with pytest.raises(UserError, match=r"data\.tokenizer\.path: missing; source 't'"):
        load_tokenizer(DataConfig(cache=str(tmp_path), sources=tokens))
    empty = text_source(tmp_path / "empty.jsonl", ["", ""])
    with pytest.raises(UserError, match=r"data\.sources\.docs: no training document"):
        load_tokenizer(DataConfig(cache=str(tmp_path), sources=empty))
    assert not list(tmp_path.glob("tokenizers/*"))

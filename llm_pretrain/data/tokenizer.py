"""The byte-level BPE: trained on the first source, or read from a tokenizer.json."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from llm_pretrain.atomic import appearing, remove_leftovers
from llm_pretrain.config.data import DataConfig
from llm_pretrain.data import corpus
from llm_pretrain.data.shards import token_size
from llm_pretrain.errors import UserError, did_you_mean

_FORMAT = 1
_BATCH = 64
"""Documents encoded at a time: an encoding takes a hundred bytes per token while it lives."""


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back; text that spells out a special token is still only text."""

    path: Path
    """The tokenizer.json."""
    fingerprint: str
    """SHA-256 of the JSON in canonical form."""
    vocab_size: int
    """One more than the largest id."""
    end_of_text_id: int
    backend: tokenizers.Tokenizer = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """What token files say they were made by."""
        return f"{self.path.name}@{self.fingerprint[:12]}"

    @property
    def token_size(self) -> int:
        """Bytes per token on disk."""
        return token_size(self.vocab_size)

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """The ids of each text, shape (tokens,); no special tokens are added."""
        encoded = []
        for first in range(0, len(texts), _BATCH):
            batch = list(texts[first : first + _BATCH])
            for encoding in self.backend.encode_batch_fast(batch, add_special_tokens=False):
                encoded.append(np.array(encoding.ids, dtype=np.uint32))
        return encoded

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return self.backend.decode(list(ids), skip_special_tokens=False)


def load_tokenizer(config: DataConfig) -> Tokenizer:
    """The tokenizer of a config: its `tokenizer.path`, or one trained once and then cached.

    Raises UserError for a file that is missing, is no tokenizer, or lacks the end-of-text token,
    and when there is no text to train on.
    """
    given = config.tokenizer.path
    path = _trained(config) if given is None else Path(given)
    return read_tokenizer(path, config.tokenizer.end_of_text)


def read_tokenizer(path: Path, end_of_text: str) -> Tokenizer:
    """Open a tokenizer.json. Raises UserError when it is unreadable or lacks `end_of_text`."""
    try:
        text = path.read_text(encoding="utf-8")
        canonical = json.dumps(json.loads(text), sort_keys=True)
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more specific than Exception
        raise UserError(
            f"data.tokenizer.path: {path} is not a tokenizer.json ({error}); "
            "null trains a tokenizer on the first source"
        ) from error
    end = backend.token_to_id(end_of_text)
    if end is None:
        added = [token.content for token in backend.get_added_tokens_decoder().values()]
        raise UserError(
            f"data.tokenizer.end_of_text: '{end_of_text}' is not in {path}; "
            f"{did_you_mean(end_of_text, added)}"
        )
    # Saved with some tokenizers, and wrong for whole documents.
    backend.no_truncation()
    backend.no_padding()
    # A document about tokenizers must not end in the middle: only we write end-of-text.
    backend.encode_special_tokens = True
    return Tokenizer(
        path=path,
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        end_of_text_id=end,
        backend=backend,
    )


def _trained(config: DataConfig) -> Path:
    name, source = next(iter(config.sources.items()))
    if source.kind == "tokens":
        raise UserError(
            f"data.tokenizer.path: missing; source '{name}' holds tokens, so name the "
            "tokenizer that made them"
        )
    key = {
        "format": _FORMAT,
        "source": corpus.definition(name, source),
        "validation_fraction": config.validation_fraction,
        "vocab_size": config.tokenizer.vocab_size,
        "train_bytes": config.tokenizer.train_bytes,
        "end_of_text": config.tokenizer.end_of_text,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(config.cache) / "tokenizers" / digest / "tokenizer.json"
    if not path.exists():
        trained = _train(config)
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing(path) as file:
            file.write(trained.to_str(pretty=True).encode())
        remove_leftovers(path.parent)
    return path


def _train(config: DataConfig) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.tokenizer.vocab_size,
        special_tokens=[config.tokenizer.end_of_text],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(config), trainer)
    return tokenizer


def _training_text(config: DataConfig) -> Iterator[str]:
    """The first `train_bytes` of the first source's documents that are not held out."""
    name, source = next(iter(config.sources.items()))
    left = config.tokenizer.train_bytes
    for document in corpus.documents(name, source):
        if corpus.held_out(document.name, config.validation_fraction):
            continue
        text = document.text.encode()[:left]
        yield text.decode(errors="ignore")  # the cut may have split a character
        left -= len(text)
        if left <= 0:
            return
    if left == config.tokenizer.train_bytes:
        raise UserError(f"data.sources.{name}: no training document to train a tokenizer on")

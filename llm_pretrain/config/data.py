"""The part of the schema that says what a batch is made of."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from llm_pretrain.config.fields import RULES, Positive, PositiveFloat


@dataclass(config=RULES)
class TokenizerConfig:
    """The byte-level BPE that turns text into tokens."""

    path: str | None = None
    """A tokenizer.json of the `tokenizers` library. Null: train one on the first source."""
    vocab_size: Annotated[int, Field(ge=258)] = 2048
    """Vocabulary to train, with 256 bytes and the end-of-text token; unused with `path`."""
    train_bytes: Positive = 8_000_000
    """Bytes of text to train it on; unused with `path`."""
    end_of_text: str = "<|endoftext|>"
    """Token appended to each document."""


@dataclass(config=RULES)
class SourceConfig:
    """One corpus of a mixture."""

    kind: Literal["stdlib", "text", "tokens"] = "stdlib"
    """stdlib: the Python standard library's own source code. text: anything that
    `datasets.load_dataset` opens. tokens: files written by datatrove's DocumentTokenizer."""
    weight: PositiveFloat = 1.0
    """Share of the sequences drawn from this source, relative to the sum of weights. A branch may
    change it."""
    path: str | None = None
    """text: a file, a glob, or a hub name. tokens: a folder with .ds files."""
    format: Literal["json", "parquet", "text"] | None = None
    """text: builder for local files; null for a hub name."""
    config: str | None = None
    """text: configuration name of a hub dataset."""
    split: str = "train"
    """text: split to read."""
    field: str = "text"
    """text: column with the document."""
    id_field: str | None = None
    """text: column that names a document (decides training or validation); null: its position."""
    validation_path: str | None = None
    """tokens: folder of the validation files; the other kinds hold out `validation_fraction`."""
    limit: Positive | None = None
    """stdlib, text: read only this many documents."""


@dataclass(config=RULES)
class DataConfig:
    """What a batch is made of."""

    sequence_length: Positive = 256
    """Tokens the model sees in one sequence (T)."""
    global_batch: Positive = 16
    """Sequences per optimizer update, over all ranks."""
    micro_batch: Positive = 16
    """Sequences per forward pass on one rank, at most; must divide a rank's share of
    global_batch where it is smaller. The share over micro_batch is the number of accumulated
    passes."""
    cache: str = ".cache"
    """Folder for prepared tokens and tokenizers, shared by all runs."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that tokenize; 0: one per core."""
    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """Share of documents held out, chosen by a hash of their name."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    sources: dict[str, SourceConfig] = field(default_factory=lambda: {"stdlib": SourceConfig()})
    """The mixture: name -> source. A name means the same text in every ancestor and branch."""

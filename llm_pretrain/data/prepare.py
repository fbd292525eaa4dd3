"""Sources of a config made ready to train on: every text tokenized once, whatever interrupts it.

A prepared source is a folder `<cache>/tokens/<hash>/` named after everything that decides its
content, with token files in `train/` and `validation/`, and `prepared.json`, written last.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_pretrain.atomic import appearing, remove_leftovers
from llm_pretrain.config.data import DataConfig, SourceConfig
from llm_pretrain.data import chunks, corpus
from llm_pretrain.data.progress import Meter
from llm_pretrain.data.shards import Tokens, TokenStream
from llm_pretrain.data.tokenizer import Tokenizer, load_tokenizer
from llm_pretrain.errors import UserError

_FORMAT = 1
"""Part of the hash: raise it when the same text would give other files."""
CHUNK_CHARACTERS = 4_000_000
"""Text per shard; part of the hash, since it decides which document is in which file."""
_RECORD = "prepared.json"
_SAMPLE = 65_536


@dataclass(frozen=True)
class PreparedSource:
    """The tokens of one source, and a digest of their content."""

    train: Tokens
    validation: Tokens
    fingerprint: str


@dataclass(frozen=True)
class Prepared:
    """What a run reads: its sources by name, and the tokenizer that made them."""

    sources: dict[str, PreparedSource]
    tokenizer: Tokenizer


@dataclass(frozen=True)
class _Record:
    """The content of prepared.json; `tokens` and `documents` are per split."""

    source: dict[str, Any]
    tokens: dict[str, int]
    documents: dict[str, int]
    fingerprint: str


def prepare(config: DataConfig, progress: bool = False) -> Prepared:
    """Tokenize what is not in the cache yet, and open all sources of `config`.

    May be killed at any moment and called again, by several processes at once too. `progress`
    shows counts on stderr for preparations that take time. Raises UserError, naming the field,
    for sources that cannot be read or hold too little for one sequence of each split.
    """
    tokenizer = load_tokenizer(config)
    sources = {}
    for name, source in config.sources.items():
        if source.kind == "tokens":
            sources[name] = _open_tokens(name, source, tokenizer)
        else:
            sources[name] = _open_text(config, name, tokenizer, progress)
        _check_length(name, sources[name], config.sequence_length)
    return Prepared(sources, tokenizer)


def _open_text(
    config: DataConfig, name: str, tokenizer: Tokenizer, progress: bool
) -> PreparedSource:
    definition = {
        "format": _FORMAT,
        "chunk_characters": CHUNK_CHARACTERS,
        "source": corpus.definition(name, config.sources[name]),
        "tokenizer": tokenizer.fingerprint,
        "end_of_text_id": tokenizer.end_of_text_id,
        "validation_fraction": config.validation_fraction,
    }
    digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(config.cache) / "tokens" / digest
    if not (folder / _RECORD).exists():
        written = _tokenize(config, name, tokenizer, folder, progress)
        _publish(folder, definition, written)
    record = _Record(**json.loads((folder / _RECORD).read_text()))
    streams = {split: TokenStream(folder / split) for split in chunks.SPLITS}
    for split, stream in streams.items():
        if len(stream) != record.tokens[split]:
            raise UserError(
                f"{stream.folder}: {len(stream)} tokens, but {folder / _RECORD} promises "
                f"{record.tokens[split]}; delete {folder} to prepare it again"
            )
    return PreparedSource(streams["train"], streams["validation"], record.fingerprint)


def _tokenize(
    config: DataConfig, name: str, tokenizer: Tokenizer, folder: Path, progress: bool
) -> list[chunks.Written]:
    for split in chunks.SPLITS:
        (folder / split).mkdir(parents=True, exist_ok=True)
    written = []
    work = _chunks(config, name, tokenizer, folder)
    with Meter(f"Preparing {name}", progress) as meter:
        for part in chunks.run(work, config.workers):
            written.append(part)
            meter.add(sum(part.documents.values()), sum(part.tokens.values()))
    if not written:
        raise UserError(
            f"data.sources.{name}: holds no document with text; check its path, field and limit"
        )
    return sorted(written, key=lambda part: part.index)


def _publish(folder: Path, definition: dict[str, Any], written: list[chunks.Written]) -> None:
    """Write the record that makes a folder of shards a prepared source."""
    digests = [[part.digests[split] for split in chunks.SPLITS] for part in written]
    content = json.dumps([definition["tokenizer"], definition["end_of_text_id"], digests])
    record = _Record(
        source=definition,
        tokens={s: sum(part.tokens[s] for part in written) for s in chunks.SPLITS},
        documents={s: sum(part.documents[s] for part in written) for s in chunks.SPLITS},
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
    )
    for place in (folder, *(folder / split for split in chunks.SPLITS)):
        remove_leftovers(place)
    with appearing(folder / _RECORD) as file:
        file.write(json.dumps(asdict(record), indent=1).encode())


def _chunks(
    config: DataConfig, name: str, tokenizer: Tokenizer, folder: Path
) -> Iterator[chunks.Chunk]:
    documents = corpus.documents(name, config.sources[name])
    for index, part in enumerate(chunks.cut(documents, CHUNK_CHARACTERS)):
        chunk = chunks.Chunk(
            index=index,
            folder=folder,
            documents=part,
            tokenizer=tokenizer.path,
            end_of_text=config.tokenizer.end_of_text,
            validation_fraction=config.validation_fraction,
        )
        yield chunk.without_text() if chunk.done() else chunk


def _open_tokens(name: str, source: SourceConfig, tokenizer: Tokenizer) -> PreparedSource:
    streams = []
    for field, value in (("path", source.path), ("validation_path", source.validation_path)):
        if value is None:
            raise UserError(
                f"data.sources.{name}.{field}: missing; kind 'tokens' needs a folder with .ds files"
            )
        stream = TokenStream(Path(value))
        _check_ids(f"data.sources.{name}.{field}", stream, tokenizer)
        streams.append(stream)
    content = [_digest_of_ends(stream) for stream in streams]
    fingerprint = hashlib.sha256(json.dumps([tokenizer.fingerprint, content]).encode()).hexdigest()
    return PreparedSource(streams[0], streams[1], fingerprint)


def _check_ids(field: str, stream: TokenStream, tokenizer: Tokenizer) -> None:
    """Refuse tokens of another tokenizer where a look at the first of them can tell."""
    if stream.dtype.itemsize < tokenizer.token_size:
        raise UserError(
            f"{field}: {stream.folder} has {stream.dtype.itemsize} bytes per token, too few for "
            f"the {tokenizer.vocab_size} ids of {tokenizer.path}; name the tokenizer that made it"
        )
    sample = stream.read(0, min(len(stream), _SAMPLE))
    if sample.size and int(sample.max()) >= tokenizer.vocab_size:
        raise UserError(
            f"{field}: {stream.folder} has the id {int(sample.max())}, but {tokenizer.path} only "
            f"{tokenizer.vocab_size} (made by {sorted(stream.tokenizer_names) or 'unknown'})"
        )


def _digest_of_ends(stream: TokenStream) -> list[list[Any]]:
    """Name, length, and a hash of the first and last tokens of each file: terabytes stay unread."""
    found = []
    start = 0
    for path, tokens in stream.shards.items():
        ends = hashlib.blake2b(stream.read(start, min(tokens, 2048)).tobytes(), digest_size=16)
        ends.update(stream.read(start + max(tokens - 2048, 0), min(tokens, 2048)).tobytes())
        found.append([path.name, tokens, ends.hexdigest()])
        start += tokens
    return found


def _check_length(name: str, source: PreparedSource, length: int) -> None:
    needed = length + 1
    for split, tokens in (("training", source.train), ("validation", source.validation)):
        if len(tokens) < needed:
            advice = "more text, a shorter data.sequence_length"
            if split == "validation":
                advice += " or a larger data.validation_fraction"
            raise UserError(
                f"data.sources.{name}: {len(tokens)} tokens for {split}, and one sequence takes "
                f"{needed}; use {advice}"
            )

"""Preparation cut into chunks: each becomes one shard per split, in whichever process is free."""

import functools
import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llm_pretrain.data.corpus import Document, held_out
from llm_pretrain.data.shards import beside, write_shard
from llm_pretrain.data.tokenizer import Tokenizer, read_tokenizer
from llm_pretrain.errors import UserError

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Chunk:
    """Some documents, and where their tokens go: `folder`/SPLIT/`index`.ds."""

    index: int
    folder: Path
    documents: list[Document]
    tokenizer: Path
    end_of_text: str
    validation_fraction: float

    def shard(self, split: str) -> Path:
        """The token file of a split; six digits keep the order of names the order of text."""
        return self.folder / split / f"{self.index:06d}.ds"

    def done(self) -> bool:
        """Whether the shards of both splits are complete."""
        return all(beside(self.shard(split), "metadata").exists() for split in SPLITS)

    def without_text(self) -> "Chunk":
        """What a worker needs of a chunk that is done."""
        return replace(self, documents=[])


@dataclass(frozen=True)
class Written:
    """What a chunk has become: per split, tokens, documents and a digest of both files."""

    index: int
    tokens: dict[str, int]
    documents: dict[str, int]
    digests: dict[str, str]


def cut(documents: Iterable[Document], characters: int) -> Iterator[list[Document]]:
    """Lists of consecutive documents with at least `characters` of text, but for the last."""
    chunk: list[Document] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= characters:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def tokenize(chunk: Chunk) -> Written:
    """Write the shards of a chunk unless they exist, and say what is in them."""
    if not chunk.done():
        tokenizer = _tokenizer(chunk.tokenizer, chunk.end_of_text)
        for split in SPLITS:
            wanted = split == "validation"
            texts = [
                document.text
                for document in chunk.documents
                if held_out(document.name, chunk.validation_fraction) == wanted
            ]
            ended = (
                np.append(ids, np.uint32(tokenizer.end_of_text_id))
                for ids in tokenizer.encode_batch(texts)
            )
            write_shard(chunk.shard(split), ended, tokenizer.name, tokenizer.token_size)
    return _inspect(chunk)


def run(chunks: Iterable[Chunk], workers: int) -> Iterator[Written]:
    """Tokenize chunks in `workers` processes (0: one per core, 1: this one), in any order.

    Chunks are drawn as workers become free, so little text is in memory. Raises UserError when
    a worker is killed.
    """
    workers = workers or _cores()
    if workers == 1:
        yield from map(tokenize, chunks)
        return
    # spawn: a fork would copy the locks of the tokenizer's and the caller's threads.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        pending: set[Future[Written]] = set()
        for chunk in chunks:
            pending.add(pool.submit(tokenize, chunk))
            if len(pending) >= 2 * workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in pending)
    except BrokenProcessPool as error:
        raise UserError(
            "data.workers: a process that tokenizes was killed, most likely for its memory; use "
            "fewer workers. What is done is kept."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    # What Slurm or a container gives, where the system can tell.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops us
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    # A pool's workers hold both ends of their queue and would wait forever for a killed parent.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@functools.cache
def _tokenizer(path: Path, end_of_text: str) -> Tokenizer:
    return read_tokenizer(path, end_of_text)


def _inspect(chunk: Chunk) -> Written:
    tokens, documents, digests = {}, {}, {}
    for split in SPLITS:
        shard = chunk.shard(split)
        index = beside(shard, "index").read_bytes()
        digests[split] = hashlib.blake2b(shard.read_bytes() + index, digest_size=16).hexdigest()
        tokens[split] = int(beside(shard, "metadata").read_text().splitlines()[1])
        documents[split] = len(index) // 8
    return Written(chunk.index, tokens, documents, digests)

"""The tokens of a run: prepared once, by the tokenizer that the run keeps."""

from dataclasses import replace
from pathlib import Path

from llm_pretrain.config.data import DataConfig
from llm_pretrain.config.schema import TrainConfig
from llm_pretrain.data.prepare import Prepared, prepare
from llm_pretrain.errors import UserError
from llm_pretrain.runs import Run


def with_own_tokenizer(data: DataConfig, path: Path) -> DataConfig:
    """The data config with the tokenizer that the run directory keeps, once it does."""
    own = Run(path).tokenizer_path
    if not own.exists():
        return data
    return replace(data, tokenizer=replace(data.tokenizer, path=str(own)))


def fill_cache(data: DataConfig) -> None:
    """Rank 0 prepares, the others find it done. Raises UserError when the cache is no place."""
    try:
        prepare(data, progress=True)
    except OSError as error:
        raise UserError(f"data.cache: {data.cache} cannot be written ({error.strerror})") from error


def check_vocabulary(config: TrainConfig, prepared: Prepared) -> None:
    """Raise UserError when the model has no row for some token."""
    size = prepared.tokenizer.vocab_size
    if size > config.model.vocab_size:
        raise UserError(
            f"model.vocab_size: {config.model.vocab_size} is smaller than the vocabulary of "
            f"{prepared.tokenizer.path} ({size}); use at least {size}"
        )

"""The command `import`: a run that begins with the weights of a Hugging Face Llama."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llm_pretrain import atomic
from llm_pretrain.config.arguments import check_flags, key_of, split_arguments
from llm_pretrain.config.compose import compose
from llm_pretrain.config.layout import Layout
from llm_pretrain.config.rules import check
from llm_pretrain.config.schema import ModelConfig, TrainConfig
from llm_pretrain.errors import EXIT_OK, UserError
from llm_pretrain.model.llama_config import FIELDS
from llm_pretrain.records import new_record
from llm_pretrain.runs import Run
from llm_pretrain.schedule.schedule import schedule_of
from llm_pretrain.weights.help import USAGE


def import_weights(arguments: Sequence[str]) -> int:
    """Run `llm-pretrain import ARGUMENTS`; the exit code. Raises UserError for bad input.

    The run appears whole, with a checkpoint at step 0.
    """
    # torch takes seconds to import; wrong arguments are told before.
    rest, config_dir, flags = split_arguments(arguments)
    check_flags("import", flags, ["--config-dir"])
    if len(rest) < 2:
        raise UserError(f"{USAGE['import']}; got {' '.join(arguments)}")
    source, path, *overrides = rest
    config = _checked(Path(path), overrides, compose(overrides, config_dir))

    import torch  # noqa: PLC0415

    from llm_pretrain.checkpoint.saver import Saver  # noqa: PLC0415
    from llm_pretrain.checkpoint.store import CheckpointStore  # noqa: PLC0415
    from llm_pretrain.data.loader import Loader  # noqa: PLC0415
    from llm_pretrain.data.prepare import prepare  # noqa: PLC0415
    from llm_pretrain.model.hf import import_hf  # noqa: PLC0415
    from llm_pretrain.train.corpus import check_vocabulary, fill_cache  # noqa: PLC0415
    from llm_pretrain.train.state import checkpoint_meta  # noqa: PLC0415
    from llm_pretrain.world import World  # noqa: PLC0415

    model, weights = import_hf(Path(source))
    config = _of(config, model, Path(source))
    fill_cache(config.data)
    prepared = prepare(config.data)
    check_vocabulary(config, prepared)
    if model.tied_embeddings:
        del weights["head.weight"]
    record = new_record(config.run.name, total=schedule_of(config).total, overrides=overrides)

    def save(run: Run) -> None:
        world = World(0, Layout(), torch.device("cpu"))
        saver = Saver(CheckpointStore(run.checkpoints), world)
        meta = checkpoint_meta(record.id, config, Loader(config, prepared), world, 0)
        saver.start({"model": {name: value.float() for name, value in weights.items()}}, meta)
        saver.wait()

    atomic.remove_leftovers(Path(path).absolute().parent)
    run = Run.create(config, record, prepared.tokenizer.path, save)
    print(f"{run.path}: the weights of {source}; go on with llm-pretrain train resume={run.path}")
    return EXIT_OK


def _checked(path: Path, overrides: Sequence[str], config: TrainConfig) -> TrainConfig:
    """The config with its place. Raises UserError when that is taken, or the weights decide."""
    for text in overrides:
        key = key_of(text)
        if key == "model" or key in {f"model.{name}" for name in FIELDS}:
            raise UserError(f"{key}: the imported weights decide it; leave it out")
    if path.exists():
        raise UserError(f"{path}: exists already; import into a new folder")
    Run.check(path)
    return replace(config, run=replace(config.run, name=path.name, dir=str(path)))


def _of(config: TrainConfig, model: ModelConfig, source: Path) -> TrainConfig:
    """The config with the sizes of the imported model, and its tokenizer unless one is given."""
    sizes = {name: getattr(model, name) for name in FIELDS}
    data = config.data
    own = source / "tokenizer.json"
    if data.tokenizer.path is None and own.is_file():
        data = replace(data, tokenizer=replace(data.tokenizer, path=str(own)))
    config = replace(config, model=replace(config.model, **sizes), data=data)
    check(config)
    return config

"""The trained model of a workdir."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax

from unihetero_jax.checkpoint.restore import CHECKPOINTS, TOKENIZER, find_step, read_json, restore_tree
from unihetero_jax.config import Config, cached_towers, starts_from_weights, uncached
from unihetero_jax.data.pipeline import built_root, open_tokenizer
from unihetero_jax.errors import UsageError
from unihetero_jax.model import groups
from unihetero_jax.model.build import define
from unihetero_jax.model.initial_weights import start_from
from unihetero_jax.model.lora import LORA, merge
from unihetero_jax.model.lora_base import with_base
from unihetero_jax.model.stored_features import restore_towers
from unihetero_jax.model.trained_model import Trained
from unihetero_jax.model.unified import UnifiedModel
from unihetero_jax.parallel.mesh import evaluation_mesh
from unihetero_jax.parallel.module_definition import ModelDefinition
from unihetero_jax.run.workdir import resolve_stored
from unihetero_jax.tokenizer.loading import load_tokenizer
from unihetero_jax.train.towers.base import TowerRunConfig


def data_root(config: Config | TowerRunConfig, workdir: Path) -> Path:
    """The directory of a run's dataset."""
    return Path(config.data.root).expanduser() if config.data.root else workdir / "data"


def define_model(config: Config) -> ModelDefinition[UnifiedModel]:
    """The definition of a config's model, with the vocabulary of its data's tokenizer.

    Args:
      config: the run's configuration; its dataset is there.

    Returns:
      ``init(key)`` makes its parameters, and ``bind(params)`` a module of them.

    Raises:
      UsageError: the dataset or its tokenizer is missing.
    """
    return define(config, open_tokenizer(config, built_root(config)).vocabulary_size)


def load_trained(workdir: Path, step: int | None = None) -> Trained:
    """The model of a run's checkpoint, on the devices that are here, whatever mesh it was trained on.

    Towers whose features were stored are built again, as ``config.init`` says, to encode other images.

    Args:
      workdir: the run's directory.
      step: the checkpoint's step; the newest by default.

    Raises:
      UsageError: no such run or checkpoint, or one that cannot be read.
    """
    workdir = Path(workdir)
    step = find_step(workdir, step)
    config = resolve_stored(read_json(workdir, step, "config"), workdir)
    if not isinstance(config, Config):
        raise UsageError(f"{workdir}: a run of `unihetero towers train`: expected one of `unihetero train`")
    tokenizer = load_tokenizer(workdir / TOKENIZER)
    model = define(config, tokenizer.vocabulary_size)
    mesh = evaluation_mesh(config.evaluate.batch_size)
    wanted = groups.as_stored(config, model.shapes()), model.shardings(mesh)
    path, settings = workdir / CHECKPOINTS / str(step), config.model.lora
    if settings.rank:
        wanted = groups.split(config, wanted[0])[0], groups.split(config, wanted[1])[0]
    shapes, places = ({"params": tree} for tree in wanted)
    params = restore_tree(path / "state", shapes, places, alone=True)["params"]
    if settings.rank:
        start = None
        if starts_from_weights(config):
            start = partial(start_from, config, model, mesh=mesh)
        params = with_base(config, model, mesh, params, read_json(workdir, step, "base"), path, start)
        if config.evaluate.merge_lora:
            plain = {name: tree for name, tree in model.shardings(mesh).items() if name != LORA}
            params = jax.jit(lambda params: merge(params, settings), out_shardings=plain)(params)
    if cached_towers(config):
        params = {**params, **restore_towers(config, params, tokenizer.vocabulary_size, mesh)}
        config = uncached(config)
        model = define(config, tokenizer.vocabulary_size)
    return Trained(config, model, params, tokenizer, step, mesh, data_root(config, workdir))

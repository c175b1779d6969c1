"""``unihetero towers train|features``."""

from __future__ import annotations

import argparse

from unihetero_jax import run
from unihetero_jax.commands.arguments import output_directory
from unihetero_jax.commands.overrides import add_config, load_config
from unihetero_jax.commands.train import add_new_workdir
from unihetero_jax.train.towers import base as tower_config

_DETAILS = """\
examples:
  unihetero towers train vq16 --config=configs/towers/vq16.py --workdir=runs/vq16
  unihetero towers train kl16 --config=configs/towers/kl16.py --workdir=runs/kl16 --config.train.steps=100
  unihetero towers train siglip --config=configs/towers/siglip.py --workdir=runs/siglip
  unihetero towers train attribute_classifier --config=configs/towers/attribute_classifier.py --workdir=runs/attr

  unihetero towers features --config=configs/unihetero_small.py --config.data.root=data/watch64 --out=features/watch64

Overrides, continuing and exit codes are those of `unihetero train`. At the end of a training WORKDIR has the tower
(tower.json and params), its evaluation (eval.json) and, of vq16 and kl16, reconstructions.png: originals above,
reconstructions below. `features` makes DIR completely or not at all.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs and their flags, and the function that runs each."""
    parser.epilog = _DETAILS
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    made = verbs.add_parser(
        "train",
        help="train a small tower",
        usage="unihetero towers train KIND --config=FILE.py --workdir=DIR [--config.SECTION.KEY=VALUE ...]",
        description="Train a tower, or continue a run.",
        epilog=_DETAILS,
    )
    kinds = tower_config.TRAINED_TOWERS.kinds()
    made.add_argument("kind", choices=kinds, metavar="KIND", help=f"the tower: {', '.join(kinds)}")
    add_config(made)
    add_new_workdir(made)
    made.set_defaults(run=_train)
    stored = verbs.add_parser(
        "features",
        help="compute the features of a dataset's images, for many trainings",
        usage="unihetero towers features --config=FILE.py --out=DIR [--config.SECTION.KEY=VALUE ...]",
        description="Run the frozen towers of an experiment over every image of its tasks. A training whose towers "
        "have cached=True reads the folder from config.data.features instead of running them.",
        epilog=_DETAILS,
    )
    add_config(stored, "; config.data.root has to be set")
    stored.add_argument("--out", type=output_directory, required=True, metavar="DIR", help="the folder to make")
    for flag, default, metavar, text, choices in (
        ("--dtype", "float16", "TYPE", "the stored type, float16 or float32", ("float16", "float32")),
        ("--split", "both", "SPLIT", "the dataset's split: train, test or both", ("train", "test", "both")),
    ):
        stored.add_argument(
            flag, choices=choices, default=default, metavar=metavar, help=f"{text} (default: %(default)s)"
        )
    stored.set_defaults(run=_store_features)


def _train(options: argparse.Namespace) -> int:
    return run.train(load_config(options, tower_config.tree(options.kind)), options.workdir)


def _store_features(options: argparse.Namespace) -> int:
    splits = ("train", "test") if options.split == "both" else (options.split,)
    run.compute_features(load_config(options), options.out, options.dtype, splits)
    return 0

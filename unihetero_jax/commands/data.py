"""``unihetero data build|import|inspect``."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from unihetero_jax import run
from unihetero_jax.commands.arguments import existing_directory, output_directory, output_file, path
from unihetero_jax.commands.data_import import add_verb
from unihetero_jax.commands.overrides import allow_overrides, load_config
from unihetero_jax.data.ingest.importer import rebuild
from unihetero_jax.data.ingest.settings import Settings
from unihetero_jax.data.packing.processes import usable_cores
from unihetero_jax.errors import UsageError, nearest

DATASETS = ("smart_watch", "celeba")
# Flags of `build` for Smart Watch only.
_DRAWN = ("num_images", "test_images", "image_size", "questions", "withheld", "told")
_BUILD_OPTIONS: tuple[tuple[str, type, Any, str, str], ...] = (
    ("num_images", int, 2000, "N", "smart_watch: training images, each with a question, a caption and a request"),
    ("test_images", int, None, "N", "smart_watch: test images (default: a tenth of num_images, at least 100)"),
    ("image_size", int, 224, "PIXELS", "smart_watch: side of an image, 16 to 4096"),
    ("seed", int, 0, "N", "seed of all random numbers"),
    (
        "questions",
        str,
        "paper",
        "STYLE",
        "smart_watch: 'paper': one to four random questions per image; 'all': all five, and captions and requests that "
        "leave nothing out; 'exact': besides, requests give the shade of the disc",
    ),
    (
        "withheld",
        str,
        "",
        "KINDS",
        "smart_watch: weather, battery, weather_pos or battery_pos (its corner), or several with commas: training "
        "images have no question about it and their captions leave it out; requests name it (default: none)",
    ),
    ("told", float, 0.0, "SHARE", "smart_watch: share of the training images that are excepted from --withheld"),
    ("vocabulary_size", int, 1024, "N", "largest vocabulary of the tokenizer that is trained on the texts"),
    ("workers", int, None, "N", "processes; the result does not depend on it (default: the usable cores)"),
)

_DETAILS = """\
examples:
  unihetero data build smart_watch --out=data/watch
  unihetero data import folder photos --table=photos/captions.csv --out=data/photos
  unihetero data inspect data/watch --grid=grid.png
  unihetero data inspect --config=configs/quickstart.py --config.data.root=data/watch --rows=rows.png

exit codes:
  0   done
  2   the command line or a file is wrong; one line on stderr says what
"""
_BUILD_EXAMPLES = """examples:
  unihetero data build smart_watch --out=data/watch
  unihetero data build smart_watch --out=data/watch64 --image_size=64 --num_images=20000 --questions=all
  unihetero data build celeba --source=downloads/celeba --out=data/celeba
"""
_INSPECT_USAGE = """unihetero data inspect [-h] DIR [--grid=FILE.png] [--histograms=FILE.png] [--sample=N] [--json]
       unihetero data inspect [-h] --config=FILE.py [--rows=FILE.png] [--json] [--config.SECTION.KEY=VALUE ...]"""
_INSPECT_EXAMPLES = """examples:
  unihetero data inspect data/watch
  unihetero data inspect data/coco --grid=coco.png --histograms=lengths.png --sample=5000
  unihetero data inspect --config=configs/quickstart.py --config.data.root=data/watch64 --rows=rows.png

Records are counted from the manifest; --sample records of each split are read and decoded, the same ones every time.
With --config, the data of a run of that experiment: the parts of its mixture, how well rows are packed, and the input
of the model.

exit codes:
  0  done
  2  what was typed is wrong, or a shard cannot be read; one line on stderr says which
"""
# Flags of `inspect` for stored records.
_STORED = ("grid", "histograms", "sample")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs and their flags, and the function that runs each."""
    parser.epilog = _DETAILS
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_build(
        verbs.add_parser(
            "build",
            help="make a dataset on disk",
            description="Make a dataset on disk. The directory appears when it is complete; making it again with the "
            "same arguments changes nothing.",
            epilog=_BUILD_EXAMPLES,
        )
    )
    add_verb(verbs)
    _add_inspect(
        verbs.add_parser(
            "inspect",
            help="report the content of a dataset, or of a run's data",
            usage=_INSPECT_USAGE,
            description="Report the content of a dataset: counts, sizes, lengths, what cannot be decoded. "
            "With --config, report what a run learns from.",
            epilog=_INSPECT_EXAMPLES,
        )
    )


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help=f"which one: {', '.join(DATASETS)}")
    parser.add_argument("--out", type=output_directory, metavar="DIR", required=True, help="the directory to make")
    parser.add_argument(
        "--source",
        type=existing_directory,
        metavar="DIR",
        help="celeba: your copy: img_align_celeba, list_attr_celeba and list_eval_partition (.txt, or Kaggle's .csv)",
    )
    for name, kind, default, metavar, text in _BUILD_OPTIONS:
        shown = text if "(default" in text else f"{text} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=shown)
    parser.set_defaults(run=lambda arguments: _run_build(arguments, getattr(parser, "given", set())))


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory",
        nargs="?",
        type=existing_directory,
        metavar="DIR",
        help="a directory made by `unihetero data build` or `unihetero data import`",
    )
    parser.add_argument("--grid", type=output_file, metavar="FILE.png", help="also draw 24 training images")
    parser.add_argument(
        "--histograms", type=output_file, metavar="FILE.png", help="also draw lengths of texts and sizes of images"
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=500,
        metavar="N",
        help="most records of a split that are read and decoded (default: %(default)s)",
    )
    parser.add_argument("--config", type=path, metavar="FILE.py", help="instead of DIR: the experiment to inspect")
    allow_overrides(parser)
    parser.add_argument("--rows", type=output_file, metavar="FILE.png", help="with --config: also draw packed rows")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for scripts")
    parser.set_defaults(run=lambda arguments: _run_inspect(arguments, getattr(parser, "given", set())))


def _run_build(arguments: argparse.Namespace, given: Collection[str]) -> int:
    if arguments.dataset not in DATASETS:
        hint = nearest(arguments.dataset, DATASETS)
        raise UsageError(f"unknown dataset {arguments.dataset!r}: expected one of {', '.join(DATASETS)}{hint}")
    for flag in ("source",) if arguments.dataset == "smart_watch" else _DRAWN:
        if flag in given:
            raise UsageError(f"--{flag} is not for {arguments.dataset} (see unihetero data build --help)")
    if arguments.dataset == "celeba":
        return _build_celeba(arguments)
    # Heavy: --help need not wait for it.
    from unihetero_jax.data.smart_watch.builder import build

    test_images = max(100, arguments.num_images // 10) if arguments.test_images is None else arguments.test_images
    build(
        arguments.out,
        num_images=arguments.num_images,
        test_images=test_images,
        image_size=arguments.image_size,
        seed=arguments.seed,
        questions=arguments.questions,
        vocabulary_size=arguments.vocabulary_size,
        withheld=arguments.withheld,
        told=arguments.told,
        workers=arguments.workers,
    )
    return 0


def _build_celeba(arguments: argparse.Namespace) -> int:
    # Heavy: --help need not wait for it.
    from unihetero_jax.data.ingest.write import Pool, import_dataset

    if arguments.source is None:
        raise UsageError("missing --source=DIR, your copy of CelebA (see unihetero data build --help)")
    importer = rebuild("celeba", {"source": str(arguments.source), "seed": arguments.seed})
    settings = Settings(vocabulary_size=arguments.vocabulary_size)
    workers = usable_cores() if arguments.workers is None else arguments.workers
    import_dataset(importer, arguments.out, settings, Pool(workers))
    return 0


def _run_inspect(arguments: argparse.Namespace, given: Collection[str]) -> int:
    if arguments.config is not None:
        if arguments.directory is not None:
            raise UsageError(
                f"{arguments.directory} and --config={arguments.config}: expected a dataset or a config, not both; a "
                "config's dataset is --config.data.root=DIR"
            )
        for flag in _STORED:
            if flag in given:
                raise UsageError(f"--{flag} is for a dataset DIR; with --config there are --rows and --json")
        run.inspect_mixture(load_config(arguments), arguments.config.stem, arguments.rows, arguments.json)
        return 0
    if arguments.overrides:
        key = arguments.overrides[0][0]
        raise UsageError(f"--config.{key}: there is no config that it could change, as in --config=FILE.py")
    if arguments.directory is None:
        raise UsageError("missing DIR, or --config=FILE.py (see unihetero data inspect --help)")
    if arguments.rows is not None:
        raise UsageError("--rows draws what a config's rows hold: expected --config=FILE.py with it")
    # Heavy: --help need not wait for it.
    from unihetero_jax.data.inspect.dataset import inspect

    inspect(arguments.directory, arguments.grid, arguments.histograms, arguments.sample, arguments.json)
    return 0

"""The verb ``unihetero data import``: what each importer takes, and how it is started."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from unihetero_jax.commands.arguments import Parser, existing_directory, existing_file, output_directory
from unihetero_jax.errors import UsageError

_EXAMPLES = """examples:
  unihetero data import folder photos --table=photos/captions.csv --out=data/photos
  unihetero data import webdataset 'laion/{00000..00127}.tar' --out=data/laion --resize=256 --min_side=128
  unihetero data import llava llava_v1_5_mix665k.json --image_root=images --out=data/llava

DIR appears when it is complete. The same command again, after whatever stopped it, goes on from where it was; what DIR
holds depends on the input and the flags, not on --workers. Each record that is left out is counted by its reason.
"""
_FOLDER_EXAMPLES = """examples:
  unihetero data import folder photos --out=data/photos
  unihetero data import folder coco --table=coco/captions.jsonl --image_column=file --test_share=0.01 --out=data/coco
  unihetero data import folder vqa --table='vqa/*.parquet' --question_column=question --answer_column=answer \\
      --out=data/vqa
"""
_WEBDATASET_EXAMPLES = """examples:
  unihetero data import webdataset 'cc3m/{00000..00331}.tar' --out=data/cc3m --resize=256 --drop_duplicates
  unihetero data import webdataset pairs/*.tar --caption_key=text --attributes=url,similarity --out=data/pairs
"""
_LLAVA_EXAMPLES = """examples:
  unihetero data import llava llava_v1_5_mix665k.json --image_root=images --out=data/llava
  unihetero data import llava blip_laion_cc_sbu_558k.json --image_root=pretrain --generation=both --out=data/pretrain
"""
_TFDS_EXAMPLES = """examples:
  unihetero data import tfds ~/tensorflow_datasets/imagenet2012/5.1.0 --test_split=validation --out=data/imagenet
  unihetero data import tfds name:coco_captions --split=train+restval --text_feature=captions/text --out=data/coco

The dataset's files have to be ArrayRecord; TensorFlow is not needed.
"""
_BEAM_EXAMPLE = """
on a cluster, with Apache Beam (pip install 'unihetero_jax[prepare]'; what follows -- are Beam's own options, and DIR
and the input have to be files that every worker sees):
  unihetero data import {} INPUT --out=/shared/data --beam -- --runner=FlinkRunner --flink_master=HOST:8081
"""


class _ImportParser(Parser):
    """A parser for which ``--`` begins the options of Beam, which are for Beam to understand."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        own = list(args or [])
        beam_options: list[str] = []
        if "--" in own:
            cut = own.index("--")
            own, beam_options = own[:cut], own[cut + 1 :]
        result, extras = super().parse_known_args(own, namespace)
        result.beam_options = beam_options
        return result, extras


def add_import(parser: argparse.ArgumentParser) -> None:
    """Adds an importer a verb; each sets ``run`` to a function of the parsed arguments that gives an exit code.

    Args:
        parser: The parser of ``unihetero data import``.
    """
    verbs = parser.add_subparsers(title="importers", metavar="KIND", required=True, parser_class=_ImportParser)
    for kind, (summary, examples, add) in _KINDS.items():
        own = verbs.add_parser(kind, help=summary, description=summary, epilog=examples + _BEAM_EXAMPLE.format(kind))
        add(own)
        _add_common(own)
        own.set_defaults(run=_run, kind=kind)


def add_verb(verbs: Any) -> None:
    """Adds ``import`` to the verbs of ``unihetero data``."""
    add_import(
        verbs.add_parser(
            "import",
            help="make a dataset of files that you have",
            description="Make a dataset of images and texts that you have, in one of several formats.",
            epilog=_EXAMPLES,
        )
    )


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=existing_directory, metavar="FOLDER", help="what the images' paths start from")
    parser.add_argument(
        "--table",
        metavar="FILE",
        help="CSV, TSV, JSONL or Parquet; a quoted pattern such as 'x/*.parquet' means several (default: the only one "
        "in FOLDER)",
    )
    for name, text in (
        ("image", "path of the image (default: image, file_name, filename, image_path, path or file)"),
        ("caption", "what the image shows (default: caption or text)"),
        ("question", "with --answer_column, instead of a caption"),
        ("answer", "of the question"),
        ("key", "names the record (default: the image's path)"),
        ("split", "train, test, validation, …; what is not for training goes to the test set"),
    ):
        parser.add_argument(f"--{name}_column", default="", metavar="NAME", help=text)
    parser.add_argument(
        "--attributes",
        type=_names,
        metavar="A,B",
        help="columns to keep with the record; an empty list keeps none (default: all that have no other use)",
    )
    _add_prompts(parser)


def _add_webdataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tars", nargs="+", metavar="TAR", help="paths or quoted patterns, such as 'data/{00000..00127}.tar'"
    )
    parser.add_argument(
        "--caption_key",
        default="caption",
        metavar="KEY",
        help="of the json, where there is no txt (default: %(default)s)",
    )
    parser.add_argument(
        "--attributes",
        type=_names,
        default=(),
        metavar="A,B",
        help="keys of the json to keep with the record (default: none)",
    )
    parser.add_argument(
        "--class_names",
        type=existing_file,
        metavar="FILE",
        help="names of the classes, one a line; one is the caption of a sample that has a cls and no other",
    )
    _add_prompts(parser)


def _add_llava(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="JSON or JSONL in LLaVA's format")
    parser.add_argument(
        "--image_root",
        type=_names,
        default=(),
        metavar="DIR",
        help="what the images' paths start from, or several with commas (default: each file's folder)",
    )
    parser.add_argument(
        "--generation",
        nargs="?",
        const="instead",
        default="off",
        metavar="HOW",
        help="turn captions round into requests that the image answers; --generation=both keeps the captions too",
    )
    parser.add_argument(
        "--requests",
        type=existing_file,
        metavar="FILE",
        help="phrasings of such requests, one a line, each with {caption}",
    )
    parser.add_argument("--caption_words", metavar="REGEX", help="what tells a request for a caption from a question")


def _add_tfds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="the directory with dataset_info.json, or name:NAME/CONFIG:VERSION to look for it where TFDS keeps them",
    )
    parser.add_argument(
        "--split",
        type=_names,
        default=("train",),
        dest="splits",
        metavar="SPLIT",
        help="for training, as TFDS writes it, such as 'train[:10%%]' (default: train)",
    )
    parser.add_argument(
        "--test_split", type=_names, default=(), dest="test_splits", metavar="SPLIT", help="for the test set"
    )
    for name, text in (
        ("image", "the image; parts of a path are separated by / (default: the only one)"),
        ("text", "what the image shows; of a sequence each gives a record (default: the only one)"),
        ("label", "a label instead of a text (default: the only one)"),
    ):
        parser.add_argument(f"--{name}_feature", default="", metavar="NAME", help=text)
    parser.add_argument(
        "--label_text", metavar="TEXT", help="what is said of a label (default: 'a photo of a {label}')"
    )
    _add_prompts(parser)


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompts", type=existing_file, metavar="FILE", help="phrasings that ask for a caption, one a line"
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=output_directory, metavar="DIR", required=True, help="the directory to make")
    for name, kind, default, metavar, text in (
        ("name", str, "", "NAME", "of the dataset, in the names of its files (default: that of the importer)"),
        ("test_share", float, 0.0, "SHARE", "of the records that go to the test set, by the hash of their key"),
        ("shard_mb", float, 200.0, "MB", "size of a shard, about"),
        ("vocabulary_size", int, 8000, "N", "most pieces of the tokenizer that is trained on the texts; 0: none"),
        ("resize", int, 0, "PIXELS", "shortest side that larger pictures are reduced to, as JPEG; 0: leave them"),
        ("quality", int, 90, "Q", "of such a JPEG, 1 to 95"),
        ("min_side", int, 0, "PIXELS", "least shortest side of a picture"),
        ("max_side", int, 0, "PIXELS", "most longest side; 0: any"),
        ("max_aspect", float, 0.0, "RATIO", "most longest over shortest side; 0: any"),
        ("max_pixels", int, 50_000_000, "N", "most pixels of a picture; larger ones are never decoded"),
        ("min_text", int, 0, "N", "least characters of a caption, or of all answers of a record"),
        ("max_text", int, 0, "N", "most of them; 0: any"),
    ):
        shown = text if "(default" in text else f"{text} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=shown)
    parser.add_argument(
        "--tokenizer", type=existing_file, metavar="FILE", help="a tokenizer.model or tokenizer.json to copy instead"
    )
    parser.add_argument(
        "--drop_duplicates", action="store_true", help="leave out what has the same pictures and text as an earlier one"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes; the result does not depend on it (default: usable cores)"
    )
    parser.add_argument("--beam", action="store_true", help="do the work with Apache Beam; its options follow --")


_KINDS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "folder": ("a folder of images and a table of captions, or of questions", _FOLDER_EXAMPLES, _add_folder),
    "webdataset": ("tars of images and texts, as img2dataset makes them", _WEBDATASET_EXAMPLES, _add_webdataset),
    "llava": ("conversations about images, in LLaVA's JSON", _LLAVA_EXAMPLES, _add_llava),
    "tfds": ("a dataset that TFDS has prepared: images with texts or labels", _TFDS_EXAMPLES, _add_tfds),
}


def _names(text: str) -> tuple[str, ...]:
    """A list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _run(arguments: argparse.Namespace) -> int:
    from unihetero_jax.data.ingest.steps import Steps
    from unihetero_jax.data.ingest.write import Execute, Pool, Settings, import_dataset
    from unihetero_jax.data.packing.process_pool import usable_cores

    if arguments.beam_options and not arguments.beam:
        raise UsageError(f"unexpected {arguments.beam_options[0]!r} after --: expected --beam before it")
    if arguments.beam and arguments.workers is not None:
        raise UsageError("--workers with --beam: how many there are is for Beam's own options, after --")
    steps = Steps(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Steps)})
    settings = Settings(
        name=arguments.name,
        steps=steps,
        test_share=arguments.test_share,
        shard_mb=arguments.shard_mb,
        vocabulary_size=arguments.vocabulary_size,
        tokenizer="" if arguments.tokenizer is None else str(arguments.tokenizer),
    )
    importer = _importer(arguments)
    execute: Execute
    if arguments.beam:
        from unihetero_jax.data.ingest.beam import Beam

        execute = Beam(arguments.beam_options)
    else:
        execute = Pool(usable_cores() if arguments.workers is None else arguments.workers)
    import_dataset(importer, arguments.out, settings, execute)
    return 0


def _importer(arguments: argparse.Namespace) -> Any:
    """The importer that was asked for; flags that were not given are left to its own defaults."""
    from unihetero_jax.data.ingest import IMPORTERS
    from unihetero_jax.data.ingest.captions import read_lines
    from unihetero_jax.data.ingest.phrases import CAPTION, read_phrases

    given = dict(vars(arguments))
    if arguments.kind == "folder":
        given |= {"root": str(arguments.root), "tables": (arguments.table,) if arguments.table else ()}
    if arguments.kind == "llava":
        given["image_roots"] = arguments.image_root
    if given.get("requests") is not None:
        given["requests"] = read_phrases(given["requests"], CAPTION)
    for lines in ("prompts", "class_names"):
        if given.get(lines) is not None:
            given[lines] = read_lines(given[lines])
    kind = IMPORTERS[arguments.kind]
    fields = [field.name for field in dataclasses.fields(kind)]
    made_of = {name: given[name] for name in fields if given.get(name) is not None}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in made_of.items()})

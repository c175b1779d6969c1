"""Importers and sources from a user's own file: found, run in worker processes, and named when they are wrong."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
from importing.given import stored, turns

from unihetero_jax import data
from unihetero_jax.cli import main
from unihetero_jax.config import resolve
from unihetero_jax.config.user_files import import_components
from unihetero_jax.errors import UsageError

IMPORTER = """
from dataclasses import dataclass
from pathlib import Path

from unihetero_jax.config.components import IMPORTERS
from unihetero_jax.data.ingest.importer import Importer, Refused, option
from unihetero_jax.data.records.record import Record, Turn


@IMPORTERS.register("lines")
@dataclass(frozen=True)
class LineImporter(Importer):
    name = "lines"
    summary = "texts, one per line"

    file: str = option(metavar="FILE", help="the text file", positional=True, exists="file")
    per_unit: int = option(2, metavar="N", help="lines of a unit", parse=int)

    def provenance(self):
        return {"file": self.file, "per_unit": self.per_unit}

    def units(self):
        count = len(Path(self.file).read_text().splitlines())
        return [{"first": first} for first in range(0, count, self.per_unit)]

    def records(self, unit):
        lines = Path(self.file).read_text().splitlines()
        for number, line in list(enumerate(lines))[unit["first"] : unit["first"] + self.per_unit]:
            if not line:
                yield Refused("empty_text", "no words").of(str(number))
                continue
            yield Record(str(number), (), (Turn("human", "Say it."), Turn("gpt", line)), "text")
"""

ROOT = Path(__file__).parents[2]


def page(name: str) -> str:
    """The file of that name on the page that shows how to extend the package."""
    blocks = re.findall(r"```python\n# my_lab/(\w+)\.py\n(.*?)```", (ROOT / "docs" / "extend.md").read_text(), re.S)
    return dict(blocks)[name]


@pytest.fixture(scope="module")
def importer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("importer")
    (folder / "my_importer.py").write_text(IMPORTER)
    (folder / "lines.txt").write_text("one\n\nthree\nfour\nfive\n")
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_a_users_importer_has_its_flags_and_runs_in_workers(importer, tmp_path, capsys, workers):
    line = f"data import --imports={importer}/my_importer.py lines {importer}/lines.txt --per_unit=1"
    arguments = [*line.split(), f"--out={tmp_path}/data", f"--workers={workers}", "--vocabulary_size=0"]
    assert main(arguments) == 0
    assert "4 records (train_text 4), 1 rejected (empty_text 1)" in capsys.readouterr().out
    said = [turns(record)[1][1] for record in stored(tmp_path / "data", "train_text")]
    assert said == ["one", "three", "four", "five"]


def test_a_users_importer_is_listed_and_others_are_named(importer, capsys):
    flag = f"--imports={importer}/my_importer.py"
    assert main(["data", "import", flag, "--help"]) == 0
    listed = capsys.readouterr().out
    assert "texts, one per line" in listed
    assert "tars of images and texts" in listed
    assert main(["data", "import", flag, "line", "x"]) == 2
    assert "unknown verb 'line': expected one of celeba, class_folders, coco, folder, lines," in capsys.readouterr().err
    assert main(["data", "import", f"--imports={importer}/none.py", "lines", "x"]) == 2
    assert "none.py: no such file" in capsys.readouterr().err


@pytest.fixture(scope="module")
def source_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("source") / "gradients.py"
    file.write_text(page("gradients"))
    import_components([str(file)])


@pytest.fixture
def gradients(source_file, dataset):
    return {
        "data": {
            "sources": {
                "mine": {"kind": "gradients", "records": 30, "reverse": 0.5},
                "watch": {"root": str(dataset)},
            },
            "tokenizer": str(dataset / "tokenizer.model"),
            "seq_len": 192,
            "image_size": 32,
        },
        "train": {"batch_size": 4},
    }


def taken(config, count, state=None, **how):
    """Some batches of a config, and the state after them."""
    it = iter(data.packed_batches(data.open_mixture(config), config, **how))
    with contextlib.closing(it):
        if state is not None:
            it.set_state(state)
        found = [{name: array.copy() for name, array in next(it).items()} for _ in range(count)]
        return found, it.get_state()


def test_a_users_source_is_mixed_with_others_and_reaches_the_workers(gradients):
    config = resolve(gradients)
    here, state = taken(config, 6, workers=0)
    assert here[0]["tokens"].shape == (4, 192)
    assert here[0]["images"].dtype == np.uint8
    apart, _ = taken(config, 6, workers=2)
    for batch, other in zip(here, apart, strict=True):
        for name, array in batch.items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)
    first, middle = taken(config, 2, workers=0)
    rest, end = taken(config, 4, middle, workers=0)
    for batch, other in zip(here, first + rest, strict=True):
        np.testing.assert_array_equal(batch["tokens"], other["tokens"])
    assert all((end[name] == array).all() for name, array in state.items())


def test_some_rows_are_those_of_all(gradients):
    config = resolve(gradients)
    whole, _ = taken(config, 3, workers=0)
    part, state = taken(config, 3, workers=0, rows=[2, 0])
    for batch, other in zip(whole, part, strict=True):
        np.testing.assert_array_equal(batch["tokens"][[2, 0]], other["tokens"])
    assert state["drawn"].shape == (4,)
    assert (state["drawn"][[1, 3]] == 0).all()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"kind": "gradient"},
            r"config.data.sources.mine.kind='gradient': expected one of .*'gradients'.*did you mean",
        ),
        ({"kind": "gradients", "root": "x"}, r"unknown config key config.data.sources.mine.root"),
        ({"kind": "gradients", "crop_share": 0.5}, r"config.data.sources.mine.crop_share=0.5 with fit"),
    ],
)
def test_what_is_wrong_with_a_users_source_is_named(gradients, source, message):
    gradients["data"]["sources"]["mine"] = source
    with pytest.raises(UsageError, match=message):
        resolve(gradients)

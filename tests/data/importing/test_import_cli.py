"""The command line of the imports: from a folder and from tars, and what is typed wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from given import pairs, picture, stored, turns, write_table, write_tar

from unihetero_jax.cli import main
from unihetero_jax.data.records.manifest import load_manifest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def made(tmp_path):
    write_tar(tmp_path / "a.tar", pairs(range(10)))
    (tmp_path / "images").mkdir()
    rows = []
    for n in range(10):
        (tmp_path / "images" / f"{n}.png").write_bytes(picture(n, (40, 30), "PNG"))
        rows.append({"file_name": f"{n}.png", "text": f"the picture {n}", "source": "x"})
    write_table(tmp_path / "images" / "t.csv", rows)
    return tmp_path


def test_tars(made, capsys):
    (made / "prompts.txt").write_text("What is it?\n\n")
    line = f"data import webdataset {made}/a.tar --out={made}/data --attributes=url,width --prompts={made}/prompts.txt"
    assert main([*line.split(), "--test_share=0.5", "--name=mine", "--vocabulary_size=300"]) == 2
    assert "vocabulary_size=300 is impossible" in capsys.readouterr().err
    assert main([*line.split(), "--test_share=0.5", "--name=mine", "--vocabulary_size=600", "--workers=1"]) == 0
    out = capsys.readouterr().out
    assert "10 records (test_caption" in out
    assert "0 rejected" in out
    assert "records/s" in out
    manifest = load_manifest(made / "data")
    assert manifest.name == "mine"
    record = stored(made / "data", "train_caption")[0]
    assert turns(record)[0] == ("human", "<image>\nWhat is it?")
    assert set(json.loads(record["attributes"])) == {"url", "width"}
    assert (made / "data" / "tokenizer.model").exists()


def test_a_folder_with_steps(made, capsys):
    line = (
        f"data import folder {made}/images --out={made}/data --resize=16 --quality=80 --min_text=10 --max_pixels=1300"
    )
    assert main([*line.split(), "--vocabulary_size=0", "--attributes=", "--workers=1", "--drop_duplicates"]) == 0
    manifest = load_manifest(made / "data")
    assert manifest.arguments == {
        "importer": "folder",
        "resize": 16,
        "quality": 80,
        "min_side": 0,
        "max_side": 0,
        "max_aspect": 0.0,
        "max_pixels": 1300,
        "min_text": 10,
        "max_text": 0,
        "max_record_mb": 64,
        "drop_duplicates": True,
        "test_share": 0.0,
        "shard_mb": 200.0,
        "vocabulary_size": 0,
        "tokenizer": "",
    }
    assert {record["attributes"] for record in stored(made / "data", "train_caption")} == {b""}
    assert not (made / "data" / "tokenizer.model").exists()


def test_llava(made):
    records = [
        {
            "image": f"{n}.png",
            "conversations": [{"from": "human", "value": "<image>\nHow?"}, {"from": "gpt", "value": "So"}],
        }
        for n in range(3)
    ]
    (made / "chat.json").write_text(json.dumps(records))
    line = f"data import llava {made}/chat.json --image_root={made}/images --out={made}/data --workers=1"
    assert main([*line.split(), "--vocabulary_size=0"]) == 0
    assert load_manifest(made / "data").counts == {"train_vqa": 3}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("folder images", "missing --out=DIR"),
        ("fodler images --out=x", "unknown verb 'fodler': expected one of celeba, .*folder, .*did you mean 'folder'"),
        ("folder nowhere --out=x", "nowhere: no such directory"),
        ("folder images --out=x --caption=3", "unknown flag --caption: .*did you mean '--caption_column'"),
        ("folder images --out=x --resize=big", "--resize: invalid int value: 'big'"),
        ("folder images --out=x --quality=99", "quality=99 is impossible: expected 1 to 95"),
        ("folder images --out=gs://bucket/x", "gs:/bucket/x: expected a directory of a mounted file system"),
        ("folder images --out=x --workers=0", "workers=0 is impossible"),
        ("folder images --out=x --caption_column=txt", r"t\.csv has no column 'txt'.*did you mean 'text'"),
        ("folder images --out=x -- --runner=DirectRunner", "unexpected '--runner=DirectRunner' after --: .* --beam"),
        ("folder images --out=x --beam --workers=3", "--workers with --beam"),
        ("webdataset --out=x", "the following arguments are required|missing TAR"),
        ("webdataset none.tar --out=x", r"cannot read none\.tar: No such file"),
        ("webdataset {0..3.tar --out=x", "expected braces as in"),
        ("webdataset a.tar --out=x --class_names=images/t.jpg", "no such file"),
        ("webdataset images/t.csv --out=x", r"t\.csv is no tar"),
    ],
)
def test_what_is_typed_wrong_gets_one_line_and_makes_nothing(made, monkeypatch, capsys, line, message):
    import re

    monkeypatch.chdir(made)
    before = sorted(made.iterdir())
    assert main(["data", "import", *line.split()]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert sorted(made.iterdir()) == before


def test_without_beam_it_says_what_to_install(made, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "apache_beam"] or ["apache_beam"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["data", "import", "folder", f"{made}/images", f"--out={made}/x", "--beam"]) == 2
    assert "--beam needs Apache Beam: `pip install 'unihetero_jax[prepare]'`" in capsys.readouterr().err


def test_the_help_starts_fast(made):
    script = (
        "import sys\n"
        "from unihetero_jax.cli import main\n"
        "main(['data', 'import', 'webdataset', '--help'])\n"
        "assert not {'jax', 'tensorflow_datasets', 'PIL', 'apache_beam'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert "TAR" in done.stdout
    assert "img2dataset" in done.stdout

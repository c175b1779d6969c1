"""CelebA: both forms of its files, and what is said about a face."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from stored import stored

from unihetero_jax.commands.arguments import Parser
from unihetero_jax.commands.data import add_arguments
from unihetero_jax.data.importers.celeba import importer as importing
from unihetero_jax.data.importers.celeba.files import read_copy
from unihetero_jax.data.importers.celeba.importer import CelebaImporter
from unihetero_jax.data.importers.celeba.text import ATTRIBUTES, TASKS, conversation, describe
from unihetero_jax.data.ingest.importer import Rejected
from unihetero_jax.data.records.draws import Draws
from unihetero_jax.data.records.manifest import load_manifest
from unihetero_jax.data.records.record import Record
from unihetero_jax.errors import UsageError

IMAGES = 30


def faces(seed: int = 0) -> list[dict[str, bool]]:
    """Attributes at random, one in five true; those of CelebA are as rare."""
    chance = random.Random(seed)
    return [{name: chance.random() < 0.2 for name in ATTRIBUTES} for _ in range(IMAGES)]


def partition(number: int) -> int:
    return 0 if number < 20 else 1 if number < 24 else 2


def make_copy(root: Path, kaggle: bool) -> Path:
    """A copy of CelebA in the authors' form or in Kaggle's, folders included."""
    folder = root / ("img_align_celeba/img_align_celeba" if kaggle else "Img/img_align_celeba")
    folder.mkdir(parents=True)
    names = [f"{number + 1:06d}.jpg" for number in range(IMAGES)]
    for number, name in enumerate(names):
        Image.new("RGB", (18, 22), (8 * number, 0, 0)).save(folder / name)
    values = [["1" if face[name] else "-1" for name in ATTRIBUTES] for face in faces()]
    if kaggle:
        # In another order: what counts is the header.
        rows = [",".join([name, *reversed(row)]) for name, row in zip(names, values, strict=True)]
        (root / "list_attr_celeba.csv").write_text("\r\n".join([",".join(["image_id", *ATTRIBUTES[::-1]]), *rows]))
        rows = [f"{name},{partition(number)}" for number, name in enumerate(names)]
        (root / "list_eval_partition.csv").write_text("\n".join(["image_id,partition", *rows]))
    else:
        (root / "Anno").mkdir()
        (root / "Eval").mkdir()
        rows = [name + "".join(f"{value:>3}" for value in row) for name, row in zip(names, values, strict=True)]
        lines = [str(IMAGES), " ".join(ATTRIBUTES) + " ", *rows]
        (root / "Anno/list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
        rows = [f"{name} {partition(number)}" for number, name in enumerate(names)]
        (root / "Eval/list_eval_partition.txt").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    return make_copy(tmp_path_factory.mktemp("celeba"), kaggle=False)


def everything(source: CelebaImporter) -> list[tuple[str, Record | Rejected]]:
    units = json.loads(json.dumps(source.units()))
    return [(unit["part"], made) for unit in units for made in source.records(unit)]


def test_every_image_gives_a_record_a_task(copy):
    made = everything(CelebaImporter(str(copy)))
    assert Counter((part, record.task) for part, record in made) == {
        **{("train", task): 20 for task in TASKS},
        **{("test", task): 10 for task in TASKS},
    }
    for _, record in made:
        number = int(record.key) - 1
        stated = json.loads(record.attributes)
        assert stated["present"] == [name for name, there in faces()[number].items() if there]
        assert stated["partition"] == ("train", "validation", "test")[partition(number)]
        assert record.images == ((copy / f"Img/img_align_celeba/{record.key}.jpg").read_bytes(),)
        shown = {"vqa": "human", "caption": "human", "generation": "gpt"}[record.task]
        assert [turn.speaker for turn in record.conversations if "<image>" in turn.text] == [shown]
        assert len(stated.get("kinds", [])) == (4 if record.task == "vqa" else 0)


def test_kaggles_files_give_the_same_records(copy, tmp_path):
    other = make_copy(tmp_path, kaggle=True)
    assert everything(CelebaImporter(str(other))) == everything(CelebaImporter(str(copy)))
    assert everything(CelebaImporter(str(other), seed=1)) != everything(CelebaImporter(str(copy)))
    assert set(CelebaImporter(str(other)).provenance()["inputs"]) == {
        "list_attr_celeba.csv",
        "list_eval_partition.csv",
    }


def test_units_change_nothing_but_who_does_the_work(copy, monkeypatch):
    whole = everything(CelebaImporter(str(copy)))
    monkeypatch.setattr(importing, "UNIT_BYTES", 1500)
    assert len(CelebaImporter(str(copy)).units()) > 6
    assert everything(CelebaImporter(str(copy))) == whole


def test_a_missing_image_is_rejected_and_the_lossless_copy_found(tmp_path):
    root = make_copy(tmp_path, kaggle=True)
    folder = root / "img_align_celeba/img_align_celeba"
    (folder / "000003.jpg").unlink()
    (folder / "000004.jpg").rename(folder / "000004.png")
    made = [one for part, one in everything(CelebaImporter(str(root))) if part == "train"]
    assert [(one.key, one.reason) for one in made if isinstance(one, Rejected)] == [("000003", "missing_image")]
    assert sum(one.key == "000004" for one in made) == 3


def test_answers_are_true_and_balanced():
    answers: Counter[str] = Counter()
    phrasings = set()
    for index, face in enumerate(faces() * 20):
        present = {name for name, there in face.items() if there}
        turns, kinds = conversation(present, 3, index, "vqa", 4)
        assert len(set(kinds)) == 4
        for kind, question, answer in zip(kinds, turns[::2], turns[1::2], strict=True):
            phrasings.add(question.text.removeprefix("<image>\n"))
            if kind in ATTRIBUTES:
                truth = kind not in present if kind == "No_Beard" else kind in present
                assert answer.text == ("yes" if truth else "no")
                answers[answer.text] += 1
            elif kind == "gender":
                assert answer.text == ("man" if "Male" in present else "woman")
            elif kind == "hair_color":
                assert f"{answer.text.title()}_Hair" in present
                assert len(present & {"Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair"}) == 1
            else:
                assert {f"{answer.text.title()}_Hair"} == present & {"Straight_Hair", "Wavy_Hair"}
    assert 0.45 < answers["yes"] / answers.total() < 0.55
    assert len(phrasings) > 200


def test_a_person_in_words():
    present = {"Male", "Young", "Wavy_Hair", "Black_Hair", "Smiling", "Eyeglasses", "Bangs", "Wearing_Hat"}
    said = {describe(present, Draws(0, index, 2)) for index in range(2000)}
    assert "a young man with wavy black hair, bangs and a beard, wearing glasses and a hat, smiling" in said, (
        "all that there is"
    )
    assert "a man" in said, "nothing but what must be said"
    assert "an older woman" in {describe({"No_Beard"}, Draws(0, index, 2)) for index in range(9)}
    assert not any("older" in text for text in said)
    texts = {describe({"No_Beard", "Blurry", "Attractive"}, Draws(0, index, 2)) for index in range(50)}
    assert "an attractive older woman, in a blurry picture" in texts
    assert not any("beard" in text for text in texts)


def test_captions_and_requests_have_several_phrasings():
    for task, least in (("caption", 8), ("generation", 10)):
        texts = [conversation({"No_Beard"}, 0, index, task, 4)[0] for index in range(200)]
        told = {turns[1 if task == "caption" else 0].text.replace("an older", "a") for turns in texts}
        assert len(told) >= least
        assert texts == [conversation({"No_Beard"}, 0, index, task, 4)[0] for index in range(200)]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("Anno/list_attr_celeba.txt", "30\n", "31\n", r"expected 31 images, as its first line says, got 30"),
        ("Anno/list_attr_celeba.txt", "30\n", "", r"line 1: expected the number of images, got '5_o_Clock"),
        ("Anno/list_attr_celeba.txt", "Smiling", "Grinning", r"line 2: .*40 attributes: Smiling is missing"),
        ("Anno/list_attr_celeba.txt", "000002.jpg", "000002.jpg 1", r"line 4: expected 40 values, got 41"),
        ("Anno/list_attr_celeba.txt", "000002.jpg", "000002.jpg x", r"line 4: expected 1 or -1, got 'x'"),
        ("Anno/list_attr_celeba.txt", "000002.jpg", "../000002.jpg", r"line 4: expected the name of an image file"),
        ("Eval/list_eval_partition.txt", "000002.jpg 0", "000002.jpg 3", r"line 2: expected a file name and 0, 1 or 2"),
        ("Eval/list_eval_partition.txt", "000002.jpg 0\n", "", r"has no line for 000002\.jpg, which .*list_attr"),
    ],
)
def test_broken_tables(tmp_path, file, old, new, message):
    table = make_copy(tmp_path, kaggle=False) / file
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError, match=message):
        CelebaImporter(str(tmp_path)).units()


def test_what_is_no_copy_of_celeba(tmp_path):
    with pytest.raises(UsageError, match=r"has no list_attr_celeba\.txt or list_attr_celeba\.csv"):
        read_copy(str(tmp_path))
    with pytest.raises(UsageError, match="questions=0 is impossible: expected 1 to 20"):
        CelebaImporter(str(tmp_path), questions=0)
    make_copy(tmp_path, kaggle=False)
    (tmp_path / "Img").rename(tmp_path / "elsewhere.zip")
    (tmp_path / "elsewhere.zip/img_align_celeba/000001.jpg").unlink()
    with pytest.raises(UsageError, match=r"img_align_celeba does not hold 000001\.jpg"):
        read_copy(str(tmp_path))
    (tmp_path / "elsewhere.zip/img_align_celeba").rename(tmp_path / "pictures")
    with pytest.raises(UsageError, match=r"has no folder img_align_celeba .*unpack img_align_celeba\.zip"):
        read_copy(str(tmp_path))


def test_from_the_command_line_to_the_shards(copy, tmp_path):
    parser = Parser()
    add_arguments(parser)
    arguments = parser.parse_args(["build", "celeba", f"--source={copy}", f"--out={tmp_path}/data", "--workers=1"])
    assert arguments.run(arguments) == 0
    manifest = load_manifest(tmp_path / "data")
    assert manifest.counts == {
        f"{part}_{task}": n for part, n in (("test", 10), ("train", 20)) for task in sorted(TASKS)
    }
    assert "tokenizer.model" in manifest.files
    assert json.loads(stored(tmp_path / "data", "train_vqa")[3]["attributes"])["partition"] == "train"
    for line, message in (
        (["build", "celeba", "--out=x"], "missing --source=DIR"),
        (["build", "celeba", "--out=x", f"--source={copy}", "--num_images=3"], "--num_images is not for celeba"),
        (["build", "smart_watch", "--out=x", f"--source={copy}"], "--source is not for smart_watch"),
    ):
        arguments = parser.parse_args(line)
        with pytest.raises(UsageError, match=message):
            arguments.run(arguments)

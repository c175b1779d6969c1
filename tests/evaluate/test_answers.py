"""Answers about datasets of any kind: scores, what is asked, and a run on two of them from files to pictures."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_config import TINY, tiny_config

from unihetero_jax import cli
from unihetero_jax.data.mixing import Source
from unihetero_jax.data.records.shards import Dataset
from unihetero_jax.evaluate import answers
from unihetero_jax.evaluate.base import Context
from unihetero_jax.evaluate.common import figures, held_out, report

TONES = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (30, 60, 220), "grey": (120, 120, 120)}
SHAPES = ("wide", "tall")


@pytest.mark.parametrize(
    ("answer", "truth", "exact", "f1"),
    [
        ("The red, wide box!", "red wide box", 1, 1),
        ("box red wide", "a red wide box", 0, 1),
        ("red red box", "red box box", 0, 2 / 3),  # one red and one box in common
        ("red", "red wide box", 0, 0.5),
        ("", "red", 0, 0),
        ("the", "", 1, 1),
        ("theatre", "atre", 0, 0),
        ("Ключ", "ключ", 1, 1),
    ],
)
def test_scores_are_those_of_squad(answer, truth, exact, f1):
    assert answers.exact_match(answer, truth) == exact
    assert answers.token_f1(answer, truth) == pytest.approx(f1)
    assert answers.token_f1(truth, answer) == pytest.approx(f1)


def test_the_best_constant_has_the_highest_mean_f1():
    for seed in range(5):
        draws = np.random.default_rng(seed)
        known = [" ".join(draws.choice(["red", "red", "box", "the"], size=draws.integers(1, 6))) for _ in range(20)]
        means = [np.mean([answers.token_f1(one, other) for other in known]) for one in known]
        assert means[known.index(answers.best_constant(known))] == pytest.approx(max(means))
    assert answers.best_constant(["", "the"]) == ""
    with pytest.raises(ValueError, match="at least one"):
        answers.best_constant([])


def test_a_score_beside_the_constant_one():
    truths = ["red box", "green box"] * 30
    found = answers.score(["red box", "red box"] * 30, truths, constant="box")
    assert found.exact == pytest.approx(0.5)
    assert found.f1 == pytest.approx(0.75)
    assert found.constant_exact == 0
    assert found.constant_f1 == pytest.approx(2 / 3)
    low, high = found.gain
    assert low < 0.75 - 2 / 3 < high
    # The standard error of a mean of 60 differences of ±1/4, nearly two of which are half the interval.
    assert high - low == pytest.approx(2 * 1.96 * 0.25 / np.sqrt(60), rel=0.15)
    assert answers.score(["x"] * 60, truths, "box").gain[1] < 0
    assert json.loads(json.dumps(found.as_json()))["gain"] == [low, high]


def test_the_table_shows_both_and_the_interval():
    found = {"emoji/caption": answers.AnswerScore(0.25, 0.5, 0.0, 0.125, "grinning face", (0.3, 0.45), 376)}
    table = answers.table(found)
    line = next(line for line in table if "F1" in line)
    assert line.split() == ["emoji/caption,", "F1", "0.500", "0.125", "+0.300", "…", "+0.450", "376"]
    assert "'grinning face'" in table[-1]
    assert "nothing was evaluated" in report.Findings(7, {}).table()


def folder(root, name: str, answer: bool = False):
    """40 pictures of bars of four colours and two shapes, and a table; as captions, or with a question."""
    root.mkdir()
    lines = ["file_name,question,answer,split" if answer else "file_name,caption,split"]
    for number in range(40):
        color, shape = list(TONES)[number % 4], SHAPES[number // 4 % 2]
        pixels = np.full((16, 24, 3), 255, np.uint8)
        bar = (slice(4, 12), slice(2, 22)) if shape == "wide" else (slice(1, 15), slice(8, 16))
        pixels[bar] = TONES[color]
        pixels[0, 0] = number
        Image.fromarray(pixels).save(root / f"{number}.png")
        test = number % 5 == 0
        words = f"What colour?,{color}{' indeed' * test}" if answer else f"{shape} bar: {color}"
        lines.append(f"{number}.png,{words},{'test' if test else 'train'}")
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    out = root.parent / f"{name}_data"
    columns = ["--question_column=question", "--answer_column=answer"] if answer else []
    flags = ["--split_column=split", "--vocabulary_size=512", "--workers=1", f"--name={name}"]
    assert cli.main(["data", "import", "folder", str(root), *columns, *flags, f"--out={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    """Imported captions."""
    return folder(tmp_path_factory.mktemp("bars") / "files", "bars")


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    """Imported questions."""
    return folder(tmp_path_factory.mktemp("colors") / "files", "colors", answer=True)


def test_what_is_asked_is_of_the_test_split_and_the_constant_of_the_training_one(bars):
    config = tiny_config(**{"data.sources": {"bars": {"root": str(bars), "reverse": 0.5, "fit": "pad"}}})
    shown, turned = held_out.entries(config, bars, held_out.TEST)
    assert (shown.name, turned.name) == ("bars/caption", "bars/caption/turned")
    asked = held_out.questions(config, shown)
    stored = Dataset(bars).split("test_caption")
    captions = [stored[number]["conversations"]["value"][1].decode() for number in range(len(stored))]
    assert len(asked.truths) == config.evaluate.questions == 6
    assert set(asked.truths) <= set(captions)
    assert asked.truths != captions[:6], "records of an import lie in the order of its input"
    assert all("<image>" not in question and len(question) > 10 for question in asked.questions)
    for truth, image in zip(asked.truths, asked.images, strict=True):
        assert image.shape == (32, 32, 3)
        np.testing.assert_allclose(image[16, 16], TONES[truth.split(": ")[1]], atol=30)
        assert image[1, 16].max() < 200, "grey is put around it, as in training"
    assert held_out.questions(config, turned) is None
    assert held_out.requests(config, shown) is None
    requests = held_out.requests(config, turned)
    assert len(requests.requests) == config.evaluate.images
    assert all(any(caption in request for caption in captions) for request in requests.requests)
    assert set(requests.phrases) == {""}
    known = held_out.training_answers(held_out.entries(config, bars, held_out.TRAIN)[0])
    assert len(known) == 32


class Damaged:
    """Records, of which number 0 cannot be read and number 1 holds no picture."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, number):
        if number == 0:
            raise OSError("a damaged shard")
        return {**self.records[number], "images": [b"no picture"]} if number == 1 else self.records[number]


def test_what_cannot_be_read_is_left_out(bars):
    config = tiny_config(**{"data.sources": {"bars": {"root": str(bars)}}, "evaluate.questions": 100})
    [entry] = held_out.entries(config, bars, held_out.TEST)
    assert len(held_out.questions(config, entry).truths) == 8
    damaged = replace(entry, records=Damaged(entry.records))
    assert len(held_out.questions(config, damaged).truths) == 6


def record(*turns: tuple[str, str], images: int = 1) -> dict:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    said = {"from": [who.encode() for who, _ in turns], "value": [text.encode() for _, text in turns]}
    return {"images": [file.getvalue()] * images, "conversations": said}


def test_which_records_are_asked():
    config = tiny_config()
    asked, shown = ("human", "What is it?\n<image>"), ("human", "<image>\n<image> Which?")
    vqa = [
        record(asked, ("gpt", "A box."), ("human", "Sure?"), ("gpt", "Yes.")),
        record(shown, ("gpt", "Two."), images=2),
        record(("human", "No picture?"), ("gpt", "No."), images=0),
        record(asked, ("gpt", " ")),
    ]
    found = held_out.questions(config, Source("a/vqa", vqa, 1.0))
    assert (found.questions, found.truths) == (["What is it?"], ["A box."])
    assert held_out.questions(config, Source("text", [vqa[2]], 1.0)) is None
    drawn = [
        record(("human", "Draw it."), ("gpt", "Here it is. <image>")),
        record(("human", "Draw it twice."), ("gpt", "<image> <image>"), images=2),
        record(("human", "<image> Mirror it."), ("gpt", "<image>"), images=2),
    ]
    requests = held_out.requests(config, Source("generation", drawn, 1.0, generation=True))
    assert (requests.requests, requests.phrases) == (["Draw it."], ["Here it is."])
    document = record(("gpt", "A text <image> and more."))
    assert held_out.requests(config, Source("interleaved", [document], 1.0, generation=True)) is None


def test_smart_watches_are_left_to_their_own_scores(watch_data, bars):
    sources = {"watch": {"root": str(watch_data)}, "bars": {"root": str(bars)}}
    config = tiny_config(**{"data.sources": sources})
    assert held_out.smart_watches(config, bars) == {"watch": watch_data}
    assert [entry.name for entry in held_out.entries(config, bars, held_out.TEST)] == ["bars/caption"]
    assert Context(None, config, bars, 7).requests().truths
    config = tiny_config(**{"data.sources": sources, "data.mode": "understanding"})
    assert Context(None, config, bars, 7).requests() is None


def evaluated(tmp_path, capsys, sources: dict, *overrides: str):
    """The scores and the screen of a run of three steps on sources, which evaluates at its end."""
    config = tmp_path / "config.py"
    values = {**TINY, "data.seq_len": 96, "train.steps": 3, "train.batch_size": 8, "logging.tensorboard": False}
    config.write_text(
        "from unihetero_jax.config import defaults\n\n\n"
        f"def get_config():\n    config = defaults()\n    config.update_from_flattened_dict({values!r})\n"
        f"    config.data.sources = {sources!r}\n    return config\n"
    )
    capsys.readouterr()
    workdir = tmp_path / "run"
    assert cli.main(["train", f"--config={config}", f"--workdir={workdir}", *overrides]) == 0
    return workdir, json.loads((workdir / "eval.json").read_text()), capsys.readouterr().out


def test_two_imports_are_trained_on_and_evaluated(bars, colors, tmp_path, capsys):
    sources = {"bars": {"root": str(bars), "reverse": 0.5}, "colors": {"root": str(colors)}}
    workdir, found, printed = evaluated(tmp_path, capsys, sources)
    assert found["vqa"] == {}
    assert list(found["answers"]) == ["bars/caption", "colors/vqa"]
    assert found["answers"]["colors/vqa"]["count"] == 6
    assert found["answers"]["colors/vqa"]["constant"] in TONES, "the constant answer is one of the training set"
    assert {"text", "semantic", "pixel"} <= set(found["losses"]["generation"])
    assert found["generation"]["count"] == 6
    assert "corners" not in found["generation"]
    with Image.open(workdir / "example.png") as picture:
        assert picture.size == (32, 32), "an image to ask about"
    for name in ("samples.png", "captions.png"):
        with Image.open(workdir / name) as picture:
            picture.load()
            assert picture.width > 600
    assert "bars/caption, F1" in printed
    asked = ["generate", f"--workdir={workdir}", f"--image={workdir / 'example.png'}", "--prompt=What is it?"]
    assert cli.main([*asked, "--max_tokens=2", "--max_images=0"]) == 0
    before = (workdir / "eval.json").read_text()
    (workdir / "eval.json").unlink()
    assert cli.main(["eval", f"--workdir={workdir}"]) == 0
    assert (workdir / "eval.json").read_text() == before


def test_a_dataset_without_a_test_set_is_trained_on(bars, tmp_path, capsys):
    files = bars.parent / "files"
    flags = ["--vocabulary_size=512", "--workers=1"]
    assert cli.main(["data", "import", "folder", str(files), *flags, f"--out={tmp_path / 'all'}"]) == 0
    _, found, printed = evaluated(tmp_path, capsys, {"all": {"root": str(tmp_path / "all")}})
    assert found == {"step": 3, "vqa": {}, "answers": {}, "losses": {}, "generation": {}}
    assert "nothing was evaluated" in printed


def test_pictures_with_what_was_said_of_them(tmp_path):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[:] = (250, 10, 10)
    path = tmp_path / "captions.png"
    figure = figures.captions(images, ["red $\\frac$ " * 40, "box"], ["", "The box."], [False, True], 3)
    report.write_file(figure, path)
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    assert (pixels == (250, 10, 10)).all(axis=1).mean() > 0.1
    assert (pixels == (0x15, 0x80, 0x3D)).all(axis=1).any(), "the right answer is green"

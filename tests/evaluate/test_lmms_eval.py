"""The adapter for lmms-eval: its two classes are stood in for where it is absent; its CLI runs where it is there."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import runs
from PIL import Image

from unihetero_jax.data.records.images import decode
from unihetero_jax.errors import UsageError
from unihetero_jax.generate.predict import Predictor
from unihetero_jax.generate.requests import Request
from unihetero_jax.run.load_model import load_trained

INSTALLED = importlib.util.find_spec("lmms_eval") is not None
SPLIT, TASK = "test", "watch"


@pytest.fixture(scope="module")
def trained(make_trained):
    return make_trained(**{"model.decoder.tie_embeddings": False})  # a random one with them says nothing


@pytest.fixture(scope="module")
def adapter():
    """The adapter's module."""
    if not INSTALLED:

        class Lmms:
            def __init__(self):
                self.task_dict = {}
                self.cache_hook = types.SimpleNamespace(add_partial=lambda *_: None)

        for name, content in {
            "lmms_eval": {},
            "lmms_eval.api": {},
            "lmms_eval.api.instance": {
                "Instance": object,
                "GenerationResult": lambda text: types.SimpleNamespace(text=text),
            },
            "lmms_eval.api.model": {"lmms": Lmms},
        }.items():
            module = types.ModuleType(name)
            vars(module).update(content)
            sys.modules[name] = module
    yield importlib.import_module("unihetero_jax.run.lmms_eval.model")
    if not INSTALLED:
        for name in [name for name in sys.modules if name.split(".")[0] == "lmms_eval"]:
            del sys.modules[name]
        del sys.modules["unihetero_jax.run.lmms_eval.model"]


@pytest.fixture(scope="module")
def pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


@pytest.fixture(scope="module")
def model(adapter, trained, pictures):
    asked_for = []
    loads, adapter.load_trained = adapter.load_trained, lambda *given: asked_for.append(given) or trained
    made = adapter.UniHetero(workdir="run", step="7", batch_size="2", device="cpu")
    adapter.load_trained = loads
    assert asked_for == [(Path("run"), 7)]
    made.task_dict = {TASK: {SPLIT: [{"picture": picture, "answer": "sunny"} for picture in pictures]}}
    return made


def instance(number, context, second):
    arguments = (context, second, lambda document: [document["picture"]], number, TASK, SPLIT)
    return types.SimpleNamespace(args=arguments, task_name=TASK)


def png(picture, tmp_path):
    picture.save(tmp_path / "picture.png")
    return decode((tmp_path / "picture.png").read_bytes(), 32)


def test_answers_are_the_predictors(model, trained, pictures, tmp_path):
    settings = {"max_new_tokens": 5, "temperature": 0, "top_p": 0, "num_beams": 1, "do_sample": False}
    contexts = ["What time is it?", "Where is <image> the battery?", "Look: <image> <image> what is the weather?"]
    requests = [instance(number, context, dict(settings)) for number, context in enumerate(contexts)]
    squares = [png(picture, tmp_path) for picture in pictures]
    asked = [
        Request.of(squares[0], contexts[0]),
        Request.of("Where is", squares[1], "the battery?"),
        Request.of(squares[2], "Look:     what is the weather?"),  # two are asked for, and there is one
    ]
    expected = Predictor(trained).generate(asked, model._sampling(settings))
    answers = model.generate_until(requests)
    assert answers == [made.text.strip() for made in expected]
    said = next(number for number, answer in enumerate(answers) if len(answer) > 1)
    # A request of other settings is made apart from the others, and comes back in its place.
    requests[said].args[1]["until"] = [answers[said][1]]
    cut = model.generate_until(requests)
    assert cut == [
        answer[: answer.index(answers[said][1])] if n == said else answer for n, answer in enumerate(answers)
    ]


def test_choices_are_scored(model, trained, pictures, tmp_path):
    choices = ["sunny", "cloudy", "raining"]
    found = model.loglikelihood([instance(0, "What is the weather?", f" {choice}") for choice in choices])
    request = Request.of(png(pictures[0], tmp_path), "What is the weather?")
    expected = Predictor(trained).score([request] * 3, choices)
    for (loss, greedy), scored in zip([made.text for made in found], expected, strict=True):
        assert loss == pytest.approx(-scored.log_likelihood / scored.tokens, rel=1e-4)
        assert greedy == scored.greedy
    from_document = model.loglikelihood([instance(0, "What is the weather?", lambda document: document["answer"])])
    assert from_document[0].text[0] == pytest.approx(found[0].text[0], rel=1e-4)
    alone = types.SimpleNamespace(args=("", "sunny"), task_name=TASK)
    assert model.loglikelihood([alone])[0].text[0] > 0


def test_what_cannot_be_is_said(adapter, model, tmp_path):
    with pytest.raises(UsageError, match="expected workdir=DIR"):
        adapter.UniHetero()
    with pytest.raises(UsageError, match=r"unknown 'workdr': expected .*did you mean 'workdir'"):
        adapter.UniHetero(workdr=str(tmp_path))
    with pytest.raises(UsageError, match="fit='squash': expected stretch, crop, pad"):
        adapter.UniHetero(workdir=str(tmp_path), fit="squash")
    with pytest.raises(UsageError, match="step='last': expected a whole number"):
        adapter.UniHetero(workdir=str(tmp_path), step="last")
    with pytest.raises(UsageError, match="num_beams=4: expected 1"):
        model.generate_until([instance(0, "What time is it?", {"num_beams": 4})])
    with pytest.raises(UsageError, match="watch asks in several rounds"):
        model.generate_until_multi_round([instance(0, "What time is it?", {})])
    video = types.SimpleNamespace(args=("What?", {}, lambda _: ["film.mp4"], 0, TASK, SPLIT), task_name=TASK)
    with pytest.raises(UsageError, match="a visual of the task is str"):
        model.generate_until([video])


def test_transparent_and_deep_pictures_are_as_in_training(adapter):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (adapter._picture(clear, 8, "stretch") == 255).all()
    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    assert (adapter._picture(deep, 8, "stretch") == 40_000 >> 8).all()
    cmyk = Image.new("RGB", (8, 8), (10, 200, 30)).convert("CMYK")
    np.testing.assert_allclose(adapter._picture(cmyk, 8, "stretch")[0, 0], (10, 200, 30), atol=2)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs the extra `eval`")
def test_its_own_command_runs_a_local_task(pictures, tmp_path):
    from datasets import Dataset, DatasetDict, Features, Value
    from datasets import Image as Picture

    workdir = tmp_path / "run"
    data = runs.build_dataset(tmp_path / "data")
    runs.finish(runs.start(runs.train_command(workdir, data, "train.steps=6")))
    rows = {
        "picture": pictures,
        "question": ["What is the weather?"] * 3,
        "answer": ["sunny", "cloudy", "raining"],
        "gold": [0, 1, 2],
    }
    kinds = Features(picture=Picture(), question=Value("string"), answer=Value("string"), gold=Value("int64"))
    stored, tasks = tmp_path / "stored", tmp_path / "tasks"
    DatasetDict({SPLIT: Dataset.from_dict(rows, features=kinds)}).save_to_disk(stored)
    tasks.mkdir()
    (tasks / "how.py").write_text(
        "def visuals(document):\n    return [document['picture'].convert('RGB')]\n\n"
        "def right(document, results):\n    return {'right': float(results[0] == document['answer'])}\n"
    )
    common = f"""
dataset_path: {stored}
dataset_kwargs: {{load_from_disk: true}}
test_split: {SPLIT}
doc_to_visual: !function how.visuals
doc_to_text: "{{{{question}}}}"
metadata: {{version: 0}}
"""
    (tasks / "said.yaml").write_text(
        common
        + """
task: watch_said
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {max_new_tokens: 8, temperature: 0, do_sample: false}
process_results: !function how.right
metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]
"""
    )
    (tasks / "chosen.yaml").write_text(
        common
        + """
task: watch_chosen
output_type: multiple_choice
doc_to_choice: [sunny, cloudy, raining]
doc_to_target: "{{gold}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [
        *(str(Path(sys.executable).with_name("lmms-eval")), "eval"),
        *("--model", "unihetero", "--model_args", f"workdir={workdir}"),
        *("--tasks", "watch_said,watch_chosen", "--include_path", str(tasks), "--batch_size", "2"),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
    ]
    # The entry point is read from the installed package's metadata.
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    [found] = list((tmp_path / "out").rglob("*results.json")) or [pytest.fail(ran.stdout[-3000:] + ran.stderr[-3000:])]
    results = json.loads(found.read_text())["results"]
    assert set(results) == {"watch_said", "watch_chosen"}
    model = Predictor(load_trained(workdir))
    squares = np.stack([png(picture, tmp_path) for picture in pictures])
    requests = [Request.of(square, "What is the weather?") for square in squares]
    right = 0
    for gold, request in enumerate(requests):
        scores = model.score([request] * 3, ["sunny", "cloudy", "raining"])
        right += int(np.argmin([-scored.log_likelihood / scored.tokens for scored in scores])) == gold
    assert results["watch_chosen"]["acc,none"] == pytest.approx(right / 3)

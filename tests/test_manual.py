"""The manual: its commands are accepted, its keys and links exist, its marked code runs, and the site builds."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import runs
from PIL import Image

from unihetero_jax import cli
from unihetero_jax.commands.arguments import Parser
from unihetero_jax.config import Config, loading
from unihetero_jax.config.experiments import experiments
from unihetero_jax.config.tree import fields_of
from unihetero_jax.train.towers import base as tower_config

ROOT = runs.ROOT
DOCS = ROOT / "docs"
# Pages that only include another file are tested by the site's build.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("howto/*.md"))]
README_WORDS = 900


class Block(NamedTuple):
    """A code block of a page; ``mark`` is what a comment before it says about running it."""

    language: str
    text: str
    mark: str | None


def _blocks(page: Path) -> list[Block]:
    found = re.finditer(r"(?:<!-- (run[^>]*?) -->\n)?^```(\w+)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    return [Block(match[2], match[3], match[1]) for match in found]


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _commands(page: Path) -> Iterator[list[str]]:
    """The words of every command in the page's shell blocks."""
    for block in _blocks(page):
        if block.language == "bash":
            yield from _words(block.text)


def _words(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell script without control flow."""
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield words
                words = []


def _arguments(words: list[str]) -> list[str] | None:
    """Those of ``unihetero`` in a command; None in other commands."""
    if Path(words[0]).name == "unihetero":
        return words[1:]
    if words[:2] == ["python", "launch/local.py"]:
        return words[words.index("--") + 1 :]
    return None


UNIHETERO = [
    pytest.param(arguments, id=f"{_name(page)}: {' '.join(arguments[:3])}")
    for page in PAGES
    if page.name != "extend.md"  # its commands name files of the page, and are run by test_extend.py
    for words in _commands(page)
    if (arguments := _arguments(words)) is not None
]


@pytest.fixture
def parse_only(monkeypatch):
    """The command line parses, and runs nothing; whether paths exist is not asked."""
    get_value, parse_args = argparse.ArgumentParser._get_value, Parser.parse_args

    def any_path(self: argparse.ArgumentParser, action: argparse.Action, text: str) -> Any:
        kind = getattr(action.type, "__name__", "")
        return Path(text) if kind.startswith(("existing_", "output_")) else get_value(self, action, text)

    def parse(self: Parser, *arguments: Any) -> argparse.Namespace:
        options = parse_args(self, *arguments)
        options.run = lambda options: 0
        return options

    monkeypatch.setattr(argparse.ArgumentParser, "_get_value", any_path)
    monkeypatch.setattr(Parser, "parse_args", parse)


@pytest.mark.parametrize("arguments", UNIHETERO)
def test_a_command_is_accepted(arguments, parse_only, capsys):
    _accept(arguments, capsys)


def _accept(arguments: list[str] | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether a command line parses, and the experiment that it names is there and takes its overrides."""
    assert arguments is not None
    overrides = [word for word in arguments if word.startswith("--config.")]
    assert cli.main([word for word in arguments if word not in overrides]) == 0, capsys.readouterr().err
    _check_overrides(arguments, [tuple(word.removeprefix("--config.").split("=", 1)) for word in overrides])


HELP = (
    *(
        "",
        "config",
        "data",
        "data build",
        "data import",
        "data inspect",
        "train",
        "towers train",
        "towers features",
        "bench",
    ),
    *("status", "eval", "generate", "weights", "weights import", "weights export", "weights inspect", "study", "plan"),
)


@pytest.mark.parametrize(
    "verb",
    [*HELP, *(f"data import {kind}" for kind in ("class_folders", "coco", "folder", "webdataset", "llava", "tfds"))],
)
def test_the_examples_of_a_help_text_are_accepted(verb, capsys, request):
    assert cli.main([*verb.split(), "--help"]) == 0
    text = capsys.readouterr().out.replace("\\\n", " ")
    examples = re.findall(r"^  (unihetero .*|python launch/local.py .*)$", text, re.M)
    assert examples or verb in ("", "study")
    request.getfixturevalue("parse_only")
    for words in _words("\n".join(re.sub(r"\$\w+", "0", example) for example in examples)):
        _accept(_arguments(words), capsys)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").rglob("*.py")), ids=_name)
def test_the_command_of_an_experiment_is_accepted(file, parse_only, capsys):
    text = (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").replace("\\\n", " ")
    (words,) = _words("\n".join(re.findall(r"^    (unihetero .*)$", text, re.M)))
    assert f"--config={_name(file)}" in words
    _accept(_arguments(words), capsys)


def _check_overrides(arguments: list[str], overrides: list[tuple[str, str]]) -> None:
    """Whether the experiment that a command names takes what the command changes in it."""
    file = next((word.removeprefix("--config=") for word in arguments if word.startswith("--config=")), None)
    if file is None:
        for key, text in overrides:
            loading.parse(key, text)
        return
    if file.startswith("configs/") or file in experiments():
        towers = arguments[:2] == ["towers", "train"]
        loading.load(
            ROOT / file if file.endswith(".py") else file,
            overrides,
            tower_config.tree(arguments[2]) if towers else None,
        )
    else:
        assert file in ("FILE.py", "photos.py", "squares.py"), (
            f"{file}: no experiment of this repository, and no placeholder"
        )
        loading.load(ROOT / "configs" / "quickstart.py", overrides)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_files_that_commands_name_exist(page):
    for words in _commands(page):
        for word in words:
            path = word.partition("=")[2] or word
            if re.match(r"(configs|launch|tests|docs)/(?!_build)", path):
                assert (ROOT / path).exists(), shlex.join(words)


def test_launchers_have_the_flags_that_are_shown():
    shown: dict[str, set[str]] = {}
    for words in (words for page in PAGES for words in _commands(page)):
        if words[0] == "python" and words[1].startswith("launch/"):
            own = words[2 : words.index("--")] if "--" in words else words[2:]
            shown.setdefault(words[1], set()).update(word.partition("=")[0] for word in own)
    assert len(shown) == 4
    for launcher, flags in shown.items():
        known = subprocess.run([sys.executable, ROOT / launcher, "--help"], capture_output=True, text=True, check=True)
        assert not [flag for flag in flags if f"{flag} " not in known.stdout and f"{flag}=" not in known.stdout], (
            launcher
        )


def _keys(section: type, prefix: str) -> Iterator[str]:
    """Every dotted key below a section, and every section."""
    for name, field in fields_of(section).items():
        key = f"{prefix}.{name}"
        yield key
        if field.table:
            key = f"{key}.NAME"
            yield key
        if field.registry is not None and dataclasses.is_dataclass(field.type):
            yield f"{key}.kind"
            for kind in field.registry.kinds():
                yield from _keys(field.registry.config(kind), key)
        elif dataclasses.is_dataclass(field.type):
            yield from _keys(field.type, key)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_path_that_is_named_exists(page):
    package = ROOT / "unihetero_jax"
    places = (ROOT, package, package / "data", package / "model", package / "train")
    top = {path.name for path in ROOT.iterdir()}
    for code in re.findall(r"`([\w/.]+(?:/|\.py))`", page.read_text("utf-8")):
        # On other pages a path without a known start is the reader's, or in a workdir.
        if page.name == "architecture.md" or code.split("/")[0] in top:
            assert any((place / code).exists() for place in places), code


# What the page on extensions shows is run by test_extend.py.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "extend.md"], ids=_name)
def test_a_key_that_is_named_exists(page):
    known = re.compile("|".join(re.escape(key).replace("NAME", r"\w+") for key in _keys(Config, "config")))
    for line in page.read_text("utf-8").splitlines():
        # Other projects' keys are in the first column.
        ours = line.split("|", 2)[-1] if page.name == "coming_from.md" else line
        for code in re.findall(r"`([^`]+)`", ours):
            key = re.match(r"(?:--)?(config(?:\.(?:NAME|[a-z]\w*))+)(?:[ =].*)?$", code)
            if key is not None and page.name != "config.md" and key[1] not in ("config.json", "config.load"):
                assert known.fullmatch(key[1]), line


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=_name)
def test_a_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_readme_is_a_page():
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= README_WORDS


def test_the_config_reference_is_up_to_date():
    # In a process of its own, where no test has registered components.
    _run(str(DOCS / "generate_config.py"), "--check")


def _run(*arguments: str) -> None:
    """``python ARGUMENTS``, which should succeed."""
    made = subprocess.run(
        [sys.executable, *arguments], env=runs.environment(), capture_output=True, text=True, timeout=runs.PATIENCE_S
    )
    assert made.returncode == 0, made.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory, dataset) -> Path:
    """A folder with a short run ``runs/quickstart``."""
    folder = tmp_path_factory.mktemp("manual")
    runs.finish(runs.start(runs.train_command(folder / "runs" / "quickstart", dataset, "train.steps=2")))
    return folder


MARKED = [page for page in PAGES if any(block.mark for block in _blocks(page))]


@pytest.mark.parametrize("page", MARKED, ids=_name)
def test_marked_code_runs(page, request, tmp_path, monkeypatch):
    marked = [block for block in _blocks(page) if block.mark]
    needs_run = any("needs=run" in (block.mark or "") for block in marked)
    monkeypatch.chdir(request.getfixturevalue("place") if needs_run else tmp_path)
    names: dict[str, Any] = {}
    for block in marked:
        if file := re.search(r"file=(\S+)", block.mark or ""):
            Path(file[1]).write_text(block.text, "utf-8")
            loading.load(file[1])
        else:
            exec(compile(block.text, str(page), "exec"), names)


# What makes the run of a page small enough for a test.
SMALL = {
    "train": ("train.steps=4", "train.batch_size=8", "evaluate.questions=4", "evaluate.images=4", "evaluate.pictures=2")
}


@pytest.mark.slow
def test_own_data_become_drawn_pictures(tmp_path, monkeypatch):
    """The commands of the page, in their order, on forty pictures of one color each."""
    page = DOCS / "howto" / "own_data.md"
    monkeypatch.chdir(tmp_path)
    lines = ["image,caption"]
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    for number in range(40):
        name, color = f"cats/{number:03}.jpg", ("red", "green", "blue")[number % 3]
        Image.new("RGB", (80, 64), color).save(tmp_path / "photos" / name)
        lines.append(f"{name},a {color} picture number {number}")
    (tmp_path / "photos" / "captions.csv").write_text("\n".join(lines) + "\n", "utf-8")
    for block in _blocks(page):
        if file := re.search(r"file=(\S+)", block.mark or ""):
            Path(file[1]).write_text(block.text, "utf-8")
    for words in _commands(page):
        if words[0] == "npm":  # from here on, public pictures that are not here
            break
        small = [f"--config.{override}" for override in SMALL.get(words[1], ())]
        _run("-m", "unihetero_jax", *words[1:], *small)
    assert {"captions.png", "samples.png", "eval.json"} <= {path.name for path in Path("runs/photos").iterdir()}
    with Image.open("cat.png") as drawn:
        assert drawn.size == (64, 64)


def test_the_site_builds_without_warnings(tmp_path):
    _run("-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(tmp_path / "html"))
    assert "mutual_benefit" in (tmp_path / "html" / "results.html").read_text("utf-8")

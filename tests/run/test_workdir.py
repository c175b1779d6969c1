"""What a workdir says of its run: which config, which files of the user's, and which version made it."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import textwrap

import pytest

import unihetero_jax
from unihetero_jax import cli, config, run
from unihetero_jax.config.components import TOWERS
from unihetero_jax.errors import UsageError
from unihetero_jax.run.workdir import PLUGINS, absolute_paths, claim

PART = """\
import unihetero_jax


@unihetero_jax.register_tower({name!r})
class Broken:
    def __call__(self):
        return self.helper()

    def helper(self):
        raise ValueError("no stripes today")
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder of the user's: ``parts.py`` registers a tower, ``experiment.py`` imports it; and the current folder."""
    folder = tmp_path / "lab"
    folder.mkdir()
    kind = f"stripes_{tmp_path.name}"
    (folder / "parts.py").write_text(PART.format(name=kind))
    (folder / "experiment.py").write_text(
        textwrap.dedent("""\
        from unihetero_jax.config import defaults


        def get_config():
            config = defaults()
            config.imports = ("parts.py",)
            return config
        """)
    )
    monkeypatch.chdir(tmp_path)
    yield folder, kind
    for registered in (TOWERS._components, TOWERS._sections):
        registered.pop(kind, None)


def test_a_run_stores_where_its_components_are_and_their_digests(lab, tmp_path):
    folder, kind = lab
    loaded = config.load("lab/experiment.py")
    assert loaded.imports == (str(folder / "parts.py"),)
    assert TOWERS.is_kind(kind)
    claim(loaded, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / PLUGINS).read_text())
    source = (folder / "parts.py").read_bytes()
    assert stored == {str(folder / "parts.py"): hashlib.sha256(b"parts.py\0" + source).hexdigest()}
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", PLUGINS}
    assert absolute_paths(config.resolve({"imports": ("lab/parts.py",)})).imports == loaded.imports
    # A run without components has no such file.
    claim(config.Config(), tmp_path / "plain")
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["config.json"]


def test_a_run_is_not_continued_with_other_components_unless_that_is_accepted(lab, tmp_path):
    folder, _ = lab
    loaded = config.load("lab/experiment.py")
    workdir = tmp_path / "run"
    claim(loaded, workdir)
    claim(loaded, workdir)
    before = (workdir / PLUGINS).read_text()
    (folder / "parts.py").write_text((folder / "parts.py").read_text() + "# other\n")
    with pytest.raises(
        UsageError, match=rf"^{folder}/parts.py has changed since .*run was started: .*--accept_changed"
    ):
        claim(loaded, workdir)
    assert (workdir / PLUGINS).read_text() == before
    claim(loaded, workdir, accept_changed_imports=True)
    assert (workdir / PLUGINS).read_text() != before
    claim(loaded, workdir)


def test_another_place_of_the_components_is_another_config_unless_that_is_accepted(lab, tmp_path):
    folder, _ = lab
    claim(config.load("lab/experiment.py"), tmp_path / "run")
    (folder / "moved.py").write_text("")
    moved = config.load("lab/experiment.py", {"imports": "lab/moved.py"})
    assert moved.imports == (str(folder / "moved.py"),)
    with pytest.raises(UsageError, match=r"started with another config; differing: imports \("):
        claim(moved, tmp_path / "run")
    claim(moved, tmp_path / "run", accept_changed_imports=True)


def test_who_reads_a_run_is_warned_of_changed_components(lab, tmp_path, said):
    folder, _ = lab
    claim(config.load("lab/experiment.py"), tmp_path / "run")
    assert unihetero_jax.open_run(tmp_path / "run").config.imports == (str(folder / "parts.py"),)
    assert said == []
    (folder / "parts.py").write_text((folder / "parts.py").read_text() + "# other\n")
    assert unihetero_jax.open_run(tmp_path / "run").config
    assert said == [f"{folder}/parts.py changed since {tmp_path}/run was started: results may differ"]


@pytest.mark.parametrize(
    ("imports", "source", "expected"),
    [
        ("lab/missing.py", "", r"config.imports: .*lab/missing.py: no such file, expected one with registered comp"),
        ("lab/parts.py", "import unihetero_jax\nx = 1 / 0\n", r"lab/parts.py:2: ZeroDivisionError: division by zero"),
        ("lab/parts.py", "x = (\n", r"lab/parts.py:1: expected a Python file with registered components: .*never clos"),
        ("parts_of_lab", "", r"config.imports: parts_of_lab cannot be imported: ModuleNotFoundError: No module named"),
        ("parts", "\nimport no_such_thing\n", r"parts cannot be imported: .*no_such_thing' \(at .*lab/parts.py:2\)"),
        ("parts", "x = (\n", r"parts cannot be imported: SyntaxError.*\(at .*lab/parts.py:1\)"),
    ],
)
def test_a_component_that_cannot_be_imported_is_one_line(lab, imports, source, expected, capsys, monkeypatch):
    folder, _ = lab
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "parts", raising=False)
    if source:
        (folder / "parts.py").write_text(source)
    assert cli.main(["config", "quickstart", f"--config.imports={imports}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(expected, err), err


def test_an_error_of_a_component_keeps_the_traceback_of_its_file(lab, capsys, monkeypatch):
    folder, kind = lab
    monkeypatch.setitem(vars(run), "train", lambda *_, **__: TOWERS.find(kind)()())
    assert cli.main(["train", "--config=lab/experiment.py", "--workdir=run"]) == 1
    err = capsys.readouterr().err
    assert err.endswith("ValueError: no stripes today\n")
    assert re.findall(r'File "(.*)", line (\d+)', err) == [(f"{folder}/parts.py", "7"), (f"{folder}/parts.py", "10")]


@pytest.mark.parametrize("read", ["claim", "open_run", "eval", "generate"])
def test_a_workdir_of_an_earlier_version_is_one_line(read, tmp_path, capsys):
    workdir = tmp_path / "run"
    claim(config.Config(), workdir)
    values = json.loads((workdir / "config.json").read_text())
    values["model"]["understanding_tower"]["vitality"] = {"depth": 3}
    (workdir / "config.json").write_text(json.dumps(values))
    expected = (
        rf"^{workdir} was made by an earlier version .*config.model.understanding_tower.vitality\): .*; start a new one"
    )
    if read in ("eval", "generate"):
        step = workdir / "checkpoints" / "3"
        for item in ("state", "data", "config", "timers"):
            (step / item).mkdir(parents=True)
        (step / "_CHECKPOINT_METADATA").write_text("")
        values["checkpoint"]["verify"] = "off"
        (workdir / "config.json").write_text(json.dumps(values))
        (step / "config" / "metadata").write_text(json.dumps(values))
        assert cli.main([read, f"--workdir={workdir}", *(["--prompt=What?"] if read == "generate" else [])]) == 2
        assert re.search(expected, capsys.readouterr().err.removeprefix("unihetero: error: "))
        return
    with pytest.raises(UsageError, match=expected):
        _ = claim(config.Config(), workdir) if read == "claim" else unihetero_jax.open_run(workdir).config

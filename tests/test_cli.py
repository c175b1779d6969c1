"""The command line, as the person sees it who types: what it answers, where, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

from unihetero_jax import __version__, cli, config, run
from unihetero_jax.errors import UsageError

KINDS = {key: field for key, field, _ in config.leaves(config.Config())}
ROOT = Path(cli.__file__).parents[1]


@pytest.fixture
def calls(monkeypatch):
    """Replaces what the verbs call by fakes that note their arguments, or raise ``error``; ``train`` returns 75."""
    noted = types.SimpleNamespace(noted=[], error=None)

    def fake(name: str):
        def call(*arguments, **options):
            noted.noted.append((name, *arguments, *options.values()))
            if noted.error is not None:
                raise noted.error
            return 75

        monkeypatch.setitem(vars(run), name, call)

    for name in ("train", "evaluate", "generate"):
        fake(name)
    return noted


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a config file ``c.py``, a run ``run``, a picture ``watch.png`` and a file ``file``."""
    monkeypatch.chdir(tmp_path)
    Path("c.py").write_text("from unihetero_jax.config import defaults\n\ndef get_config():\n    return defaults()\n")
    Path("run").mkdir()
    Path("watch.png").write_bytes(b"")
    Path("file").write_text("")
    return tmp_path


TRAIN = ["train", "--config=c.py", "--workdir=new"]
GENERATE = ["generate", "--workdir=run", "--prompt=What?"]


def refused(argv, capsys) -> str:
    """The one line on stderr of a command that is refused."""
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("unihetero: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "Traceback" not in err
    return err


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], ["usage: unihetero", "data", "train", "eval", "generate", "exit codes"]),
        (["-h"], ["usage: unihetero", "train"]),
        (["--help"], ["usage: unihetero", "75"]),
        (["data", "--help"], ["build", "inspect", "smart_watch", "exit codes"]),
        (["data", "build", "--help"], ["--out", "--num_images"]),
        (["config", "--help"], ["FILE|NAME", "--json", "examples"]),
        (["data", "inspect", "--help"], ["--grid"]),
        (
            ["train", "--help"],
            ["--config.train.steps=20", "--config.data.root", "WORKDIR/data", "examples", "  0 ", "  2 ", "  75 "],
        ),
        (["train", "--config=missing.py", "-h"], ["--workdir"]),
        (["bench", "--help"], ["--config", "--steps", "input pipeline alone", "MFU", "examples", "  2 "]),
        (["status", "--help"], ["--workdir", "--json", "lost", "examples", "  2 "]),
        (["eval", "--help"], ["--follow", "--step", "--out", "newest", "examples", "  2 "]),
        (["generate", "--help"], ["--workdir DIR --prompt TEXT [--image", "--out", "--step", "newest", "examples"]),
    ],
)
def test_help_goes_to_stdout(argv, expected, capsys):
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for part in expected:
        assert part in out
    assert max(map(len, out.splitlines())) <= 120


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"unihetero {__version__}\n"


def test_train_hands_over_config_and_workdir_and_returns_its_exit_code(calls, here):
    assert cli.main([*TRAIN, "--config.train.steps", "10", "--config.logging.tensorboard=false"]) == 75
    [(verb, resolved, workdir, accepted)] = calls.noted
    assert (verb, workdir, accepted) == ("train", Path("new"), False)
    assert resolved == config.resolve({"train": {"steps": 10}, "logging": {"tensorboard": False}})
    # The trainer creates its directory, once there is something to write.
    assert not Path("new").exists()
    assert cli.main([*TRAIN, "--accept_changed_imports"]) == 75
    assert calls.noted[-1][-1] is True


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("argv", "change"),
    [
        (["--config.mesh.fsdp", "-1"], {}),
        (["--config.mesh.fsdp=1", "--config.mesh.tensor", "-1"], {"mesh": {"fsdp": 1, "tensor": -1}}),
        (["--config.data.root", ""], {}),
        (["--config.data.root=a=b --c"], {"data": {"root": "a=b --c"}}),
        (["--config.optimizer.learning_rate=1e-3"], {"optimizer": {"learning_rate": 1e-3}}),
    ],
)
def test_overrides_with_and_without_equals(argv, change, calls):
    for command in ([*TRAIN, *argv], ["train", *argv, "--workdir", "new", "--config", "c.py"]):
        assert cli.main(command) == 75
        assert calls.noted[-1][1] == config.resolve(change)


@pytest.mark.usefixtures("here")
def test_eval_and_generate_hand_over_their_arguments(calls):
    workdir = Path("run")
    assert cli.main(["eval", "--workdir=run"]) == 0
    assert cli.main(["eval", "--workdir", "run", "--step", "20", "--out=out.json"]) == 0
    assert cli.main(["eval", "--workdir=run", "--follow"]) == 0
    assert cli.main(["eval", "--workdir=run", "--config.evaluators.vqa=none", "--config.evaluate.images", "3"]) == 0
    assert cli.main(GENERATE) == 0
    assert cli.main([*GENERATE, "--image=watch.png", "--out", "out.png", "--step=0"]) == 0
    assert cli.main([*GENERATE, "--temperature=0.5", "--top_k", "5", "--max_images=0"]) == 0
    assert calls.noted == [
        ("evaluate", workdir, None, False, None, {}),
        ("evaluate", workdir, 20, False, Path("out.json"), {}),
        ("evaluate", workdir, None, True, None, {}),
        ("evaluate", workdir, None, False, None, {"evaluators.vqa": "none", "evaluate.images": "3"}),
        ("generate", workdir, "What?", None, None, None),
        ("generate", workdir, "What?", Path("watch.png"), Path("out.png"), 0),
        ("generate", workdir, "What?", None, None, None, 0.5, 5, 0),
    ]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        # verbs
        (["trian"], ["'trian'", "config, data, train, towers, bench, status, eval, generate", "did you mean 'train'"]),
        (["status"], ["missing --workdir=DIR"]),
        (["status", "--workdir=rnu"], ["--workdir: rnu: no such directory", "did you mean 'run'"]),
        (["bench"], ["missing --config=FILE.py"]),
        (["bench", "--config=c.py", "--steps=many"], ["--steps", "'many'", "expected an integer"]),
        (
            ["bench", "--config=c.py", "--config.logging.profile_steps=a-b"],
            ["profile_steps=a-b", "integers separated by commas"],
        ),
        (["xyz"], ["'xyz'", "config, data, train, towers, bench, status, eval, generate"]),
        ([""], ["unknown verb ''"]),
        (["--verison"], ["--verison", "'--version'"]),
        (["--workdir=run", "eval"], ["--workdir", "verb"]),
        (["--version", "now"], ["'now'"]),
        (["data"], ["missing VERB", "unihetero data --help"]),
        (["data", "biuld"], ["'biuld'", "build, import, inspect", "did you mean 'build'"]),
        (["data", "--biuld"], ["--biuld"]),
        (["data", "build", "smart_wtach", "--out=x"], ["'smart_wtach'", "expected one of", "'smart_watch'"]),
        (["data", "build", "smart_watch"], ["missing --out=DIR", "unihetero data build --help"]),
        (["data", "build", "--out=x"], ["missing DATASET"]),
        (["data", "build", "smart_watch", "--out=x", "--num_image=3"], ["--num_image", "'--num_images'"]),
        (["data", "build", "smart_watch", "--out=x", "--num_images=x"], ["--num_images", "'x'", "int"]),
        (["data", "inspect"], ["missing DIR, or --config=FILE.py"]),
        (["data", "inspect", "run", "b"], ["'b'"]),
        (["data", "inspect", "run", "--config.train.steps=3"], ["--config.train.steps", "there is no config"]),
        (["status", "--workdir=run", "--config.train.steps=3"], ["--config.train.steps", "there is no config"]),
        (["config"], ["missing FILE|NAME"]),
        (["config", "quickstrat"], ["--config=quickstrat", "did you mean 'quickstart'"]),
        (["config", "c.py", "--config.train.stpes=3"], ["did you mean 'config.train.steps'"]),
        # flags and stray words
        (["train"], ["missing --config=FILE.py, --workdir=DIR", "unihetero train --help"]),
        (["train", "--config=c.py"], ["missing --workdir=DIR"]),
        (["train", "--workdir=new"], ["missing --config=FILE.py"]),
        (["train", "--config=c.py", "--wrokdir=x"], ["--wrokdir", "did you mean '--workdir'"]),
        (["train", "--config=c.py", "--work=x"], ["--work:", "--workdir"]),
        (["train", "--config=c.py", "--work=a b"], ["'--work=a b'", "did you mean '--workdir'"]),
        (["train", "--config=c.py", "-workdir=x"], ["-workdir", "did you mean '--workdir'"]),
        (["train", "--config=c.py", "workdir=x"], ["'workdir=x'", "did you mean '--workdir'"]),
        (["train", "c.py", "--workdir=new"], ["unexpected argument 'c.py'"]),
        ([*TRAIN, "extra"], ["unexpected argument 'extra'"]),
        ([*TRAIN, "--", "extra"], ["unexpected argument"]),
        ([*TRAIN, "two\nlines"], ["unexpected argument"]),
        ([*TRAIN, "--workdir=other"], ["--workdir", "given twice"]),
        (["train", "--config=c.py", "--workdir"], ["--workdir", "expected a value"]),
        (["train", "--workdir", "--config=c.py"], ["--workdir", "expected a value"]),
        (["train", "--config=c.py", "--workdir="], ["--workdir", "expected a path"]),
        (["train", "--config=", "--workdir=new"], ["--config", "expected a path"]),
        (["train", "--config=c.py", "--workdir=file"], ["--workdir", "file is a file", "expected a directory"]),
        (["train", "--config=c.py", "--workdir=file/in/it"], ["--workdir", "file is a file"]),
        (["eval", "--workdir=run", "--folow"], ["--folow", "did you mean '--follow'"]),
        (["eval", "--workdir=run", "--follow=yes"], ["--follow='yes'", "expected no value"]),
        (["eval", "--workdir=run", "--config.train.steps=3"], ["config.train.steps", "config.evaluate or"]),
        (["eval", "--workdir=run", "--config.evaluate.image=1"], ["did you mean 'config.evaluate.images'"]),
        (["eval", "--workdir=run", "--config.evaluate.at_end=2"], ["config.evaluate.at_end=2: expected true or false"]),
        (
            ["eval", "--workdir=run", "--config.evaluate.reader=r"],
            ["config.evaluate.reader: now config.evaluators.generation.attribute_classifier"],
        ),
        (["eval", "--workdir=run", "--config.evaluators.mine.kind=vqb"], ["evaluators.mine.kind='vqb'", "'vqa'"]),
        (["eval", "--workdir=file"], ["--workdir", "file is a file"]),
        (["eval", "--workdir=rnu"], ["--workdir", "rnu", "did you mean 'run'"]),
        (["eval", "--workdir=no/run"], ["--workdir", "no/run", "no such directory"]),
        (["eval", "--workdir=run", "--step=abc"], ["--step", "'abc'", "expected an integer, 0 or more"]),
        (["eval", "--workdir=run", "--step=1.5"], ["--step", "'1.5'", "expected an integer"]),
        (["eval", "--workdir=run", "--step=-3"], ["--step", "'-3'", "0 or more"]),
        (["eval", "--workdir=run", "--step", "-3"], ["--step", "'-3'", "0 or more"]),
        (["eval", "--workdir=run", "--step="], ["--step", "expected an integer"]),
        (["eval", "--workdir=run", "--step=1", "--follow"], ["--follow", "--step"]),
        (["eval", "--workdir=run", "--out=no/out.json"], ["--out", "no directory no"]),
        (["eval", "--workdir=run", "--out=run"], ["--out", "run is a directory"]),
        (["generate", "--workdir=run"], ["missing --prompt=TEXT"]),
        (["generate", "--workdir=run", "--prompt= "], ["--prompt", "expected some text"]),
        ([*GENERATE, "--image=wtach.png"], ["--image", "wtach.png", "did you mean 'watch.png'"]),
        ([*GENERATE, "--image=run"], ["--image", "run is a directory"]),
        ([*GENERATE, "--image=" + "x" * 5000], ["--image", "name too long"]),
        ([*GENERATE, "--image=file/watch.png"], ["--image", "no such file"]),
        ([*GENERATE, "--step=-1"], ["--step", "'-1'", "0 or more"]),
        ([*GENERATE, "--temperature=warm"], ["--temperature", "'warm'"]),
        ([*GENERATE, "--promt=a"], ["--promt", "did you mean '--prompt'"]),
        # the config and its overrides
        (
            ["train", "--config=d.py", "--workdir=new"],
            ["d.py", "no such file, expected one with get_config()", "did you mean 'c.py'"],
        ),
        (["train", "--config=run", "--workdir=new"], ["run is a directory"]),
        (["train", "--config=watch.png", "--workdir=new"], ["watch.png", "get_config()"]),
        ([*TRAIN, "--config.tran.steps=1"], ["config.tran.steps", "did you mean 'config.train.steps'"]),
        ([*TRAIN, "--config.tran", "1"], ["config.tran", "did you mean 'config.train'"]),
        ([*TRAIN, "--config.steps=5"], ["config.steps", "did you mean 'config.train.steps'"]),
        ([*TRAIN, "--config.=5"], ["unknown config key config."]),
        ([*TRAIN, "--config.train=3"], ["config.train is a section", "config.train.steps", "config.train.seed"]),
        ([*TRAIN, "--config.train"], ["config.train is a section"]),
        ([*TRAIN, "--config.train.steps=1e3"], ["config.train.steps=1e3", "expected an integer"]),
        ([*TRAIN, "--config.train.steps="], ["config.train.steps=", "expected an integer"]),
        ([*TRAIN, "--config.train.steps"], ["--config.train.steps has no value", "expected an integer"]),
        (["train", "--config.train.steps", *TRAIN[1:]], ["--config.train.steps has no value", "expected an integer"]),
        ([*TRAIN, "--config.logging.tensorboard"], ["--config.logging.tensorboard has no value", "true or false"]),
        ([*TRAIN, "--config.stpes"], ["config.stpes", "did you mean 'config.train.steps'"]),
        ([*TRAIN, "--config.logging.tensorboard=maybe"], ["tensorboard=maybe", "expected true or false"]),
        ([*TRAIN, "--config.data.mode=mixd"], ["config.data.mode='mixd'", "did you mean 'mixed'"]),
        ([*TRAIN, "--config.train.steps=0"], ["config.train.steps=0", "above 0"]),
        ([*TRAIN, "--config.optimizer.learning_rate=nan"], ["config.optimizer.learning_rate=nan", "finite"]),
        ([*TRAIN, "--config.train.steps=3", "--config.train.steps=3"], ["config.train.steps is given twice"]),
        ([*TRAIN, "--config.train.steps=3", "4"], ["unexpected argument '4'"]),
        ([*TRAIN, "--confg.train.steps=3"], ["--confg.train.steps"]),
    ],
)
def test_what_is_typed_wrong_gets_one_line(argv, expected, capsys, calls):
    line = refused(argv, capsys)
    for part in expected:
        assert part in line
    assert calls.noted == []


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("    return {", ["c.py:2: ", "never closed"]),
        ("    return defaults(", ["c.py:2: ", "never closed"]),
        (
            "    from unihetero_jax.config import defaults\n    defaults().tran.steps = 1",
            ["c.py:3: ", "'config.train'"],
        ),
        ("    raise RuntimeError('a\\nb')", ["c.py:2: ", "RuntimeError: a b"]),
        ("    pass", ["c.py: ", "NoneType"]),
    ],
)
def test_a_broken_config_file_gets_one_line(body, expected, capsys, calls):
    Path("c.py").write_text(f"def get_config():\n{body}\n")
    line = refused(TRAIN, capsys)
    for part in expected:
        assert part in line
    assert calls.noted == []


@pytest.mark.usefixtures("here")
def test_config_prints_keys_values_and_meanings(capsys):
    assert cli.main(["config", "c.py", "--config.train.steps=7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "* train.steps = 7" in lines
    assert "  train.seed = 0" in lines
    assert "modules (``my_lab.parts``) or Python files" in lines[lines.index("  imports = []") + 1]
    assert {line[2:].partition(" = ")[0] for line in lines if line[2] != " "} == KINDS.keys()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["quickstart", "towers/kl16"])
def test_what_config_prints_as_json_is_a_config(name, capsys):
    assert cli.main(["config", name, "--json", "--config.train.steps=7"]) == 0
    Path("config.json").write_text(text := capsys.readouterr().out)
    assert json.loads(text)["train"]["steps"] == 7
    assert cli.main(["config", "config.json", "--json"]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("key", [key for key in KINDS if KINDS[key].type not in (str, tuple[str, ...])])
def test_garbage_for_any_config_key_gets_one_line(key, capsys, calls):
    assert f"config.{key}=" in refused([*TRAIN, f"--config.{key}=garbage!"], capsys)
    assert calls.noted == []


@pytest.mark.usefixtures("here")
def test_every_default_is_accepted_as_an_override(calls):
    overrides = [f"--config.{key}={config.lookup(config.Config(), key)}" for key in KINDS]
    assert cli.main([*TRAIN, *overrides]) == 75
    assert calls.noted[0][1] == config.Config()


@pytest.mark.usefixtures("here")
def test_a_usage_error_from_further_down_gets_one_line(calls, capsys):
    calls.error = UsageError("run: no checkpoint\nof step 7")
    assert refused(["eval", "--workdir=run"], capsys) == "unihetero: error: run: no checkpoint of step 7\n"


@pytest.mark.usefixtures("here")
def test_an_interrupt_leaves_with_130_and_no_traceback(calls, capsys):
    calls.error = KeyboardInterrupt()
    assert cli.main(["eval", "--workdir=run"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("error", [RuntimeError("ours"), SystemExit(3)])
def test_our_own_mistakes_are_not_hidden(calls, error):
    calls.error = error
    with pytest.raises(type(error)):
        cli.main(["eval", "--workdir=run"])


@pytest.mark.parametrize("verb", ["--help", "train --help", "eval --help", "generate --help", "train --config.stpes=3"])
def test_help_and_typing_slips_do_not_wait_for_jax(verb):
    code = f"""
        import sys
        from unihetero_jax import cli
        code = cli.main({verb.split()!r})
        heavy = [name for name in ("jax", "flax", "grain", "tensorflow", "orbax") if name in sys.modules]
        print("heavy:", heavy, "code:", code)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    expected = 2 if "stpes" in verb else 0
    assert done.stdout.splitlines()[-1] == f"heavy: [] code: {expected}"


def test_the_process_exits_with_the_code():
    command = [sys.executable, "-m", "unihetero_jax"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith("usage: unihetero VERB")
    done = subprocess.run([*command, "trian"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_request_for_a_trace_that_comes_too_early_ends_no_run(tmp_path):
    config = tmp_path / "early.py"
    config.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGUSR1)\nraise ValueError('after the signal')\n")
    command = [sys.executable, "-m", "unihetero_jax", "train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "after the signal" in done.stderr


def test_who_stops_reading_gets_no_traceback():
    command = [sys.executable, "-m", "unihetero_jax"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141

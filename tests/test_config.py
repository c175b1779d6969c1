"""The config tree and config files: what a notebook sees when it calls ``resolve`` and ``config_file.load``."""

from __future__ import annotations

import json
import sys
import textwrap
import typing

import ml_collections
import pytest

from unihetero_jax import config
from unihetero_jax.config import loading as config_file
from unihetero_jax.config.tree import nested
from unihetero_jax.data.sources.shards import ShardsConfig
from unihetero_jax.errors import UsageError

KINDS = {key: field for key, field, _ in config.leaves(config.Config())}


@pytest.fixture
def write(tmp_path):
    """Writes a config file; ``body`` changes ``c``, from line 6 on."""

    def write_(body: str = "pass", name: str = "experiment.py"):
        path = tmp_path / name
        head = (
            '"""An experiment."""\nfrom unihetero_jax.config import defaults\n\ndef get_config():\n    c = defaults()\n'
        )
        path.write_text(head + textwrap.indent(textwrap.dedent(body), "    ") + "\n    return c\n")
        return path

    return write_


def message(call) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_resolve_of_defaults_is_the_default_config():
    assert config.resolve(config.defaults()) == config.Config()
    assert config.resolve({}) == config.Config()


def test_resolve_takes_a_partial_dict_and_an_integer_for_a_number():
    resolved = config.resolve({"optimizer": {"learning_rate": 1}, "train": {"steps": 7}})
    assert resolved.train.steps == 7
    assert resolved.optimizer.learning_rate == 1.0
    assert isinstance(resolved.optimizer.learning_rate, float)
    assert resolved.train.batch_size == config.Config().train.batch_size


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"tran": {}}, ["config.tran", "'train'"]),
        ({"train": {"stpes": 3}}, ["config.train.stpes", "'steps'"]),
        ({"train": {1: 3}}, ["config.train.1"]),
        ({"train": 3}, ["config.train=3", "section", "steps"]),
        ({"train": {"steps": "3"}}, ["config.train.steps='3'", "an integer", "str"]),
        ({"train": {"steps": True}}, ["config.train.steps=True", "an integer", "bool"]),
        ({"train": {"steps": 3.0}}, ["config.train.steps=3.0", "an integer", "float"]),
        ({"train": {"steps": None}}, ["config.train.steps=None", "an integer"]),
        ({"optimizer": {"learning_rate": True}}, ["config.optimizer.learning_rate", "a number", "bool"]),
        ({"optimizer": {"learning_rate": 10**400}}, ["config.optimizer.learning_rate", "finite"]),
        ({"optimizer": {"learning_rate": float("nan")}}, ["config.optimizer.learning_rate", "finite"]),
        ({"data": {"mode": "mixd"}}, ["config.data.mode='mixd'", "'mixed'", "did you mean"]),
        ({"data": {"mode": ["mixed"]}}, ["config.data.mode", "'mixed'"]),
        ({"train": {"steps": 0}}, ["config.train.steps=0", "above 0"]),
        ({"train": {"seed": -1}}, ["config.train.seed=-1", "0 or more"]),
        ({"optimizer": {"beta1": 1.5}}, ["config.optimizer.beta1=1.5", "from 0 to 1"]),
        ({"model": {"decoder": {"dropout": 1.0}}}, ["config.model.decoder.dropout", "below 1"]),
        ({"model": {"decoder": {"width": 100}}}, ["config.model.decoder.width=100", "config.model.decoder.heads=6"]),
        ({"model": {"decoder": {"head_width": 33}}}, ["config.model.decoder", "even"]),
        ({"model": {"decoder": {"kv_heads": 4}}}, ["config.model.decoder.kv_heads=4", "does not divide"]),
        ({"train": {"accumulation": 3}}, ["config.train.accumulation=3", "config.train.batch_size=64"]),
        ({"losses": {"text": {"chunk": 100}}}, ["config.losses.text.chunk=100", "config.data.seq_len=256"]),
        ({"data": {"packing_window": 33}}, ["config.data.packing_window=33", "32"]),
        ({"data": {"workers": -2}}, ["config.data.workers=-2", "-1 (none)"]),
        ({"data": {"workers": 513}}, ["config.data.workers=513", "at most 512"]),
        ({"mesh": {"slice": -1}}, ["config.mesh", "-1"]),
        ({"mesh": {"tensor": 0}}, ["config.mesh", "positive"]),
        (
            {"data": {"mode": "generation", "task_weights": {"generation": 0, "interleaved": 0}}},
            ["config.data.task_weights", "'generation'"],
        ),
        ({"losses": {"text": {"weight": 0}, "semantic": {"weight": 0}}}, ["config.losses", "reaches the decoder"]),
        (
            {"model": {"understanding_adapter": {"normalize": False}}},
            ["config.model.understanding_adapter.normalize=False", "cosine"],
        ),
    ],
)
def test_resolve_refuses_in_one_line_that_names_the_key(values, expected):
    text = message(lambda: config.resolve(values))
    for part in expected:
        assert part in text


def test_mode_filters_the_task_weights():
    understanding = config.resolve({"data": {"mode": "understanding"}})
    assert config.mode_weights(understanding) == {
        "vqa": 1.0,
        "caption": 1.0,
        "generation": 0.0,
        "text": 1.0,
        "interleaved": 0.0,
    }


def test_sources_are_sections_under_names_of_the_users_choice(write):
    path = write("c.data.sources.emoji = {'root': 'data/emoji', 'reverse': 0.5}")
    loaded = config_file.load(path, [("data.sources.watch-2.root", "w"), ("data.sources.emoji.fit", "pad")])
    assert loaded.data.sources == {
        "emoji": ShardsConfig(root="data/emoji", reverse=0.5, fit="pad"),
        "watch-2": ShardsConfig(root="w"),
    }
    assert config.resolve(json.loads(config.to_json(loaded))) == loaded
    assert hash(loaded) != hash(config.Config()), "compiled programs are kept by config"
    moved = config_file.load(path, [("data.sources.emoji.root", "elsewhere")])
    plain = config_file.load(path)
    assert config.refused_on_resume(plain.to_dict(), moved.to_dict()) == ["data.sources.emoji.root"]


@pytest.mark.parametrize(
    ("line", "key", "now"),
    [
        ("c.data.slots = 64", "data.slots", "config.data.seq_len"),
        ("c.data = {'slots': 64}", "data.slots", "config.data.seq_len"),
        ("c.data.sources.a = {'turn_round': 1.0}", "data.sources.a.turn_round", "config.data.sources.a.reverse"),
        (
            "c.data.sources = {'a-1': {'turn_round': 1.0}}",
            "data.sources.a-1.turn_round",
            "config.data.sources.a-1.reverse",
        ),
    ],
)
def test_a_renamed_key_is_answered_with_its_successor(write, line, key, now):
    assert f"unknown config key config.{key}: now {now}" in message(lambda: config_file.load(write(line)))
    path = write("c.data.sources.a = {'root': 'r'}")
    assert f"unknown config key config.{key}: now {now}" in message(lambda: config_file.load(path, [(key, "1")]))


SOURCE = {"root": "a"}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"sources": {"a": {"rot": "x"}}}, ["config.data.sources.a.rot", "'root'"]),
        ({"sources": {"a": {}}}, ["config.data.sources.a.root=''", "directory"]),
        ({"sources": {"a b": SOURCE}}, ["config.data.sources: 'a b' is not a name"]),
        ({"sources": ["a"]}, ["config.data.sources=['a']", "names of your choice"]),
        ({"sources": {"a": "x"}}, ["config.data.sources.a='x'", "a section"]),
        ({"sources": {"a": SOURCE}, "root": "b"}, ["config.data.root='b' with config.data.sources"]),
        ({"sources": {"a": SOURCE}, "features": "b"}, ["config.data.features='b' with config.data.sources"]),
        ({"sources": {"a": {**SOURCE, "weight": -1}}}, ["config.data.sources.a.weight=-1.0", "0 or more"]),
        ({"sources": {"a": {**SOURCE, "epochs": 0}}}, ["config.data.sources.a.epochs=0.0", "above 0"]),
        ({"sources": {"a": {**SOURCE, "reverse": 2}}}, ["config.data.sources.a.reverse=2.0", "from 0 to 1"]),
        ({"sources": {"a": {**SOURCE, "crop_share": 0}}}, ["config.data.sources.a.crop_share=0.0", "above 0"]),
        ({"sources": {"a": {**SOURCE, "crop_share": 0.5}}}, ["config.data.sources.a.crop_share=0.5", "fit='crop'"]),
        ({"sources": {"a": {**SOURCE, "fit": "cop"}}}, ["config.data.sources.a.fit='cop'", "'crop'"]),
        (
            {"sources": {"a": {**SOURCE, "task_weights": {"vqa": -1}}}},
            ["config.data.sources.a.task_weights.vqa=-1.0", "0 or more"],
        ),
        (
            {"sources": {"a": {**SOURCE, "weight": 2}, "b": {"root": "b"}}},
            ["config.data.sources.b.weight=0 beside a's 2.0", "for all sources, or for none"],
        ),
        ({"generation_share": 0.5, "mode": "generation"}, ["config.data.generation_share=0.5", "mode='mixed'"]),
        ({"temperature": 0}, ["config.data.temperature=0", "above 0"]),
    ],
)
def test_sources_are_checked(data, expected):
    text = message(lambda: config.resolve({"data": data}))
    for part in expected:
        assert part in text


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("data.sources.a.rot", "config.data.sources.a.root"),
        ("data.sources.a.task_weights.vqaa", "config.data.sources.a.task_weights.vqa"),
        ("data.surces", "config.data.sources"),
    ],
)
def test_a_key_of_a_source_is_suggested_with_its_name(key, suggestion):
    assert f"did you mean {suggestion!r}" in message(lambda: config_file.value_type(key))


def test_load_applies_the_file_and_then_the_overrides(write):
    path = write("c.train.steps = 7\nc.train.batch_size = 8")
    loaded = config_file.load(path, [("train.steps", "9"), ("data.root", "/some/where")])
    assert (loaded.train.steps, loaded.train.batch_size, loaded.data.root) == (9, 8, "/some/where")
    assert config_file.load(str(path)).train.steps == 7


@pytest.mark.parametrize(
    "returned",
    [
        "{'train': {'steps': 7}}",
        "ml_collections.ConfigDict({'train': {'steps': 7}})",
        "ml_collections.FrozenConfigDict({'train': {'steps': 7}})",
        "{'train': ml_collections.ConfigDict({'steps': 7})}",
    ],
)
def test_load_takes_dicts_of_any_kind(tmp_path, returned):
    path = tmp_path / "c.py"
    path.write_text(f"import ml_collections\n\ndef get_config():\n    return {returned}\n")
    assert config_file.load(path, [("data.seq_len", "128")]) == config.resolve(
        {"train": {"steps": 7}, "data": {"seq_len": 128}}
    )


def test_load_leaves_nothing_behind_and_sees_every_edit(write, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    modules = set(sys.modules)
    assert config_file.load(write("c.train.steps = 1")).train.steps == 1
    # The same size within the same second: cached bytecode would be taken for current.
    assert config_file.load(write("c.train.steps = 2")).train.steps == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["experiment.py"]
    assert set(sys.modules) == modules


def test_load_allows_dataclasses_in_the_file(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\n\n"
        "@dataclasses.dataclass\nclass Arm:\n    steps: int\n\n"
        "def get_config():\n    return {'train': {'steps': Arm(3).steps}}\n"
    )
    assert config_file.load(path).train.steps == 3


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("c.train.stpes = 3", ["experiment.py:6: ", "config.train.stpes", "'config.train.steps'"]),
        ("c['train']['stpes'] = 3", ["experiment.py:6: ", "config.train.stpes", "'config.train.steps'"]),
        ("c.tran.steps = 3", ["experiment.py:6: ", "config.tran", "'config.train'"]),
        ("c['xyz']", ["experiment.py:6: ", "config.xyz", "config.train"]),
        ("c.steps = 3", ["experiment.py:6: ", "config.steps", "'config.train.steps'"]),
        ("t = c.train\n\nt.stpes = 3", ["experiment.py:8: ", "config.stpes", "'config.train.steps'"]),
        ("c.train.update({\n  'stpes': 3})", ["experiment.py:", "stpes", "'config.train.steps'"]),
        ("c.model.decoder.lyaers = 3", ["experiment.py:6: ", "'config.model.decoder.layers'"]),
        ("c.train.steps = 'x'", ["experiment.py:6: ", "config.train.steps=x", "an integer", "got str"]),
        ("c.train.steps = 1e3", ["experiment.py:6: ", "config.train.steps=1000.0", "an integer", "got float"]),
        ("t = c.train\nt.batch_size = 'x'", ["experiment.py:7: ", "config.", "batch_size=x", "got str"]),
        ("t = c.train\nt.accumulation = 'x'", ["experiment.py:7: ", "config.train.accumulation=x", "an integer"]),
        ("c.data.mode = 3", ["experiment.py:6: ", "config.data.mode=3", "'mixed'", "got int"]),
        ("c.train = 3", ["experiment.py:6: ", "config.train=3", "section", "steps"]),
        ("c.train.steps = True", ["experiment.py: ", "config.train.steps=True", "an integer"]),
        ("c.train.steps = None", ["experiment.py: ", "config.train.steps=None", "an integer"]),
        ("c.train.steps = 0", ["experiment.py: ", "config.train.steps=0", "above 0"]),
        ("c.data.mode = 'mixd'", ["experiment.py: ", "config.data.mode='mixd'", "'mixed'"]),
        ("c.unlock()\nc.steps = 3", ["experiment.py: ", "config.steps", "'config.train.steps'"]),
        ("raise ValueError('first\\nsecond')", ["experiment.py:6: ", "ValueError: first second"]),
        ("raise ValueError", ["experiment.py:6: ", "ValueError"]),
        ("{}['here']", ["experiment.py:6: ", "KeyError: here"]),
        ("open('/not/there')", ["experiment.py:6: ", "FileNotFoundError", "/not/there"]),
        ("import sys\nsys.exit(0)", ["experiment.py:7: ", "SystemExit"]),
        ("nothing", ["experiment.py:6: ", "NameError", "nothing"]),
        ("import not_a_module", ["experiment.py:6: ", "ModuleNotFoundError", "not_a_module"]),
        ("return None", ["experiment.py: ", "get_config() returned NoneType", "defaults()"]),
        ("c.train.steps =", ["experiment.py:6: ", "invalid syntax"]),
        ("c.train.steps = (3", ["experiment.py:6: ", "never closed"]),
    ],
)
def test_load_names_the_file_the_line_and_the_key(write, body, expected):
    path = write(body)
    text = message(lambda: config_file.load(path))
    for part in expected:
        assert part in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"get_confg = dict\n", ["get_config()", "'get_confg'"]),
        (b"get_config = 3\n", ["get_config()"]),
        (b"", ["get_config()"]),
        (b"def get_config(argument):\n    return {}\n", ["c.py: ", "TypeError", "argument"]),
        (b"import not_a_module\n", ["c.py:1: ", "not_a_module"]),
        (b'{"train": \n', ["c.py:1: ", "Python", "never closed"]),
        (b"\x89PNG\r\n\x1a\n\x00\x00", ["c.py", "Python"]),
        (b"a = '\x00'\n", ["c.py", "Python"]),
        (b"def get_config():\n    return {'train': {1: 2}}\n", ["c.py: ", "config.train.1"]),
        (b"def get_config():\n    return {'train': 3}\n", ["c.py: ", "config.train=3", "section"]),
        (b"def get_config():\n    return {'steps': 3}\n", ["c.py: ", "config.steps", "'config.train.steps'"]),
    ],
)
def test_load_refuses_what_is_no_config_file(tmp_path, content, expected):
    path = tmp_path / "c.py"
    path.write_bytes(content)
    for overrides in ([], [("train.steps", "3")]):
        text = message(lambda overrides=overrides: config_file.load(path, overrides))
        for part in expected:
            assert part in text


def test_load_of_a_missing_file_names_the_nearest(write, tmp_path):
    write(name="smart_watch.py")
    assert "'smart_watch.py'" in message(lambda: config_file.load(tmp_path / "smart_wtach.py"))
    assert "there is no directory" in message(lambda: config_file.load(tmp_path / "confgs" / "smart_watch.py"))
    assert "is a directory" in message(lambda: config_file.load(tmp_path))


def test_load_blames_the_override_and_not_the_file_for_a_clash(write):
    path = write("c.train.batch_size = 8")
    text = message(lambda: config_file.load(path, [("train.accumulation", "3")]))
    assert text.startswith("config.train.accumulation=3")
    path = write("c.train.batch_size = 8\nc.train.accumulation = 3")
    assert message(lambda: config_file.load(path, [("train.steps", "3")])).startswith(
        f"{path}: config.train.accumulation"
    )
    assert config_file.load(path, [("train.accumulation", "2")]).train.accumulation == 2


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("steps", "config.train.steps"),
        ("mode", "config.data.mode"),
        ("checkpoint.steps", "config.checkpoint.every_steps"),
        ("tran.steps", "config.train.steps"),
        ("tran", "config.train"),
        ("stpes", "config.train.steps"),
        ("train.stpes", "config.train.steps"),
        ("train.Steps", "config.train.steps"),
        ("train.batch-size", "config.train.batch_size"),
        ("learning_rate", "config.optimizer.learning_rate"),
        ("train.learning_rate", "config.optimizer.learning_rate"),
        ("optimizer.lerning_rate", "config.optimizer.learning_rate"),
        ("decoder.width", "config.model.decoder.width"),
        ("model.decodr.width", "config.model.decoder.width"),
        ("losses.pixl.width", "config.losses.pixel.width"),
        ("evaluate.batchsize", "config.evaluate.batch_size"),
        ("train.steps.x", "config.train.steps"),
        ("config.train.steps", "config.train.steps"),
    ],
)
def test_the_nearest_key_is_looked_for_in_the_whole_tree(key, suggestion):
    text = message(lambda: config_file.value_type(key))
    assert f"config.{key}" in text
    assert f"did you mean {suggestion!r}" in text


@pytest.mark.parametrize("key", ["", ".", "train.", ".steps", "qqqqqqq"])
def test_a_key_like_no_other_still_gets_one_line(key):
    assert "unknown config key" in message(lambda: config_file.value_type(key))


@pytest.mark.parametrize("key", KINDS)
def test_every_default_round_trips_as_an_override(write, key):
    value = config.lookup(config.Config(), key)
    path = write("pass")
    assert config_file.load(path, [(key, str(value))]) == config.Config()
    parsed = config_file.parse(key, str(value))
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("key", [key for key in KINDS if KINDS[key].type not in (str, tuple[str, ...])])
def test_garbage_for_every_key_is_refused(key):
    expected = {int: "an integer", float: "a number", bool: "true or false"}.get(KINDS[key].type, "one of")
    if typing.get_origin(KINDS[key].type) is tuple:
        expected = "integers separated by commas"
    for garbage in ("garbage!", "", "None", "[x]"):
        text = message(lambda garbage=garbage: config_file.parse(key, garbage))
        assert f"config.{key}=" in text
        assert expected in text


def test_a_choice_is_suggested_for_every_misspelt_word():
    for key, kind in KINDS.items():
        if typing.get_origin(kind.type) is typing.Literal:
            for choice in typing.get_args(kind.type):
                assert f"did you mean {choice!r}" in message(
                    lambda key=key, choice=choice: config_file.parse(key, choice + "x")
                )


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.steps", "10", 10),
        ("mesh.fsdp", "-1", -1),
        ("optimizer.learning_rate", "1e3", 1000.0),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.learning_rate", "2e-4", 2e-4),
        ("data.root", "", ""),
        ("data.root", "a=b", "a=b"),
        ("data.mode", "understanding", "understanding"),
        *[("logging.tensorboard", text, True) for text in ("true", "True", "1", "yes")],
        *[("logging.tensorboard", text, False) for text in ("false", "False", "0", "no")],
    ],
)
def test_overrides_are_typed_by_their_key(key, text, value):
    parsed = config_file.parse(key, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("train.steps", "1e3"),
        ("train.steps", "1.0"),
        ("train.steps", "true"),
        ("train.steps", "9" * 5000),
        ("optimizer.learning_rate", "true"),
        ("optimizer.learning_rate", "1,5"),
        ("logging.tensorboard", "TRUE"),
        ("logging.tensorboard", "2"),
        ("logging.tensorboard", "on"),
        ("data.mode", "Mixed"),
    ],
)
def test_overrides_of_another_type_are_refused(key, text):
    assert f"config.{key}=" in message(lambda: config_file.parse(key, text))


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400"])
def test_numbers_that_are_not_finite_are_refused(write, text):
    path = write("pass")
    assert "finite" in message(lambda: config_file.load(path, [("optimizer.learning_rate", text)]))


def test_an_override_for_a_key_given_twice_is_refused(write):
    path = write("pass")
    overrides = [("train.steps", "3"), ("train.seed", "1"), ("train.steps", "3")]
    assert "config.train.steps is given twice" in message(lambda: config_file.load(path, overrides))


def test_a_section_is_no_value(write):
    text = message(lambda: config_file.parse("train", "3"))
    assert "config.train is a section" in text
    assert "config.train.steps" in text
    assert "config.train.batch_size" in text


def test_defaults_are_locked():
    assert isinstance(config.defaults(), ml_collections.ConfigDict)
    with pytest.raises(AttributeError):
        config.defaults().train.stpes = 3


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("objectives.semantic.weight", "config.losses.NAME"),
        ("objectives.pixel.head", "config.losses.pixel.kind"),
        ("objectives.pixel.diffusion.width", "keys of config.losses.pixel itself"),
        ("model.same_tower", "config.model.generation_tower.kind=siglip"),
        ("model.understanding_tower.patch.width", "keys of config.model.understanding_tower itself"),
        ("model.generation_tower.vit.layers", "keys of config.model.generation_tower itself"),
        ("model.pixel_tower.kl.latent", "keys of config.model.pixel_tower itself"),
        ("model.understanding_tower.distortion.strength", "now config.model.understanding_distortion"),
    ],
)
def test_a_renamed_key_names_its_successor(write, key, hint):
    """On the command line and in a file; a stored config names what is no key any more."""
    for call in (
        lambda: config_file.load(write(), [(key, "1")]),
        lambda: config_file.load(write(f"c.{key} = 1")),
    ):
        text = message(call)
        assert "unknown config key config." in text
        assert hint in text
    first = key.partition(".")[0]
    assert f"unknown config key config.{first}" in message(lambda: config.resolve(nested({key: 1})))


def test_sections_that_may_be_absent(write):
    """A dict or a key below gives them, None removes them."""
    given = write("c.model.generation_tower = {'kind': 'siglip', 'preset': 'siglip-tiny'}", "two_towers.py")
    loaded = config_file.load(given)
    assert (loaded.model.generation_tower.kind, loaded.model.generation_tower.width) == ("siglip", 128)
    assert loaded.model.generation_adapter is not None
    assert config_file.load(given, [("model.generation_tower", "none")]) == config_file.load(write())
    typed = [("model.generation_tower.kind", "siglip"), ("model.generation_tower.preset", "siglip-tiny")]
    assert config_file.load(write(), typed) == loaded
    assert config.resolve(json.loads(config.to_json(loaded))) == loaded
    text = message(lambda: config_file.load(write("c.model.generation_tower.kind = 'siglip'")))
    assert "experiment.py:6: config.model.generation_tower is None: expected a dict first" in text
    distorted = config_file.load(write(), [("model.generation_distortion.strength", "0.2")]).model
    assert (distorted.generation_distortion.strength, distorted.understanding_distortion) == (0.2, None)
    assert config_file.load(write(), [("model.generation_distortion.strength", "0")]) == config.Config()

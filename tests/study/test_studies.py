"""Every study that there is: its arms at every scale, and how many there are in all."""

from __future__ import annotations

import pytest
import runs

from unihetero_jax.commands import study as cli
from unihetero_jax.commands.arguments import Parser
from unihetero_jax.errors import UsageError
from unihetero_jax.study import registry, report_data, runner
from unihetero_jax.study.run_config import check_given, run_config
from unihetero_jax.study.workdir import Workdir

DATA = dict.fromkeys(("emoji", "pairs", "instructions", "requests"), "/nowhere")
WEIGHTS = dict.fromkeys(
    ("decoder", "siglip", "vq16", "clip", "dinov2", "kl16", "stage1_clip_clip", "stage1_clip_vq"), "/nowhere"
)


# Beside ours, those that are given as files.
SHARED_ADAPTER, REAL_PICTURES = (
    str(runs.ROOT / "docs" / "studies" / name / "study.py") for name in ("shared_adapter", "real_pictures")
)
NAMED = {name: registry.find(name) for name in (*registry.names(), SHARED_ADAPTER, REAL_PICTURES)}


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        pytest.param(name, scale, marks=() if scale == made.scales[0] else pytest.mark.slow)
        for name, made in NAMED.items()
        for scale in made.scales
    ],
)
def test_every_arm_is_a_valid_experiment(name, scale, tmp_path):
    made, place = NAMED[name], Workdir(tmp_path, scale, DATA, WEIGHTS)
    configs = [run_config(made, job, place) for job in runner.select_runs(made, scale, 1)]
    assert all(config.evaluate.at_end for config in configs)
    # Two arms of one study that are the same run would be one arm with two names.
    assert len({place.runs(config) for config in configs}) == len(configs)


def test_all_studies_together_are_few_runs(tmp_path):
    place = Workdir(tmp_path, "tiny", DATA)
    keys = {
        place.runs(run_config(made, job, place))
        for made in registry.built_in().values()
        if "tiny" in made.scales
        for job in runner.select_runs(made, "tiny", 1)
    }
    assert len(keys) <= 60


@pytest.mark.parametrize(
    ("file", "name", "arms", "shared"),
    [
        # Two of the three arms of each size, all but the added data.
        (SHARED_ADAPTER, "scaling", 17, 10),
        # Naming alone, and naming and drawing as much of either.
        (REAL_PICTURES, "real_world", 5, 2),
    ],
)
def test_a_study_of_a_file_takes_the_runs_that_ours_have(file, name, arms, shared, tmp_path):
    place = Workdir(tmp_path, "tiny", DATA)
    ours, theirs = (
        {place.runs(run_config(made, job, place)) for job in runner.select_runs(made, "tiny", 1)}
        for made in (registry.find(name), registry.find(file))
    )
    assert len(theirs) == arms
    assert len(ours & theirs) == shared


def test_arms_on_real_pictures_differ_in_task_and_in_length(tmp_path):
    """Naming and drawing see as many pictures as mixed training shows of either, or take as many steps."""
    place, made = Workdir(tmp_path, "tiny", DATA), registry.find(REAL_PICTURES)
    configs = {job.arm.name: run_config(made, job, place) for job in runner.select_runs(made, "tiny", 1)}
    told = {arm: (config.data.mode, config.train.steps) for arm, config in configs.items()}
    steps = told["mixed"][1]
    assert told == {
        "understanding": ("understanding", steps // 2),
        "understanding_longer": ("understanding", steps),
        "generation": ("generation", steps // 2),
        "generation_longer": ("generation", steps),
        "mixed": ("mixed", steps),
    }
    assert configs["mixed"].data.sources["emoji"].reverse == 0.5


def test_small_scales_do_without_what_they_could_not_tell(tmp_path):
    made = registry.find("transfer")
    gone = {arm.name for arm in made.arms()} - {arm.name for arm in made.arms("tiny")}
    assert {name.split("-")[1] for name in gone} == {"weather_absent"}
    claims = {claim.id for claim in made.claims} - {claim.id for claim in made.claims_at("tiny")}
    assert {name.split(".")[2] for name in claims} == {"weather_absent"}
    assert made.claims_at("paper") == list(made.claims)
    place = Workdir(tmp_path, "tiny")
    place.study(made).mkdir()
    assert [finding.claim for finding in report_data.make_report(made, place).findings] == made.claims_at("tiny")


def test_the_studies_are_listed():
    said = runs.finish(runs.start(["study", "list"]))
    assert all(name in said for name in registry.names())


def test_arms_of_full_size_alone_are_marked(command, capsys):
    assert command("list", "transfer") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  vq_vq-weather_absent-mixed  (at scale paper only)" in lines
    assert "  vq_vq-corner_absent-mixed" in lines


@pytest.mark.parametrize(
    ("name", "scale", "given", "expected"),
    [
        ("real_world", "tiny", {}, r"needs 'emoji': expected --data=emoji=DIR, as in configs/emoji.py"),
        ("real_world", "paper", {}, "has no scale paper: expected tiny or small"),
        ("llava", "paper", {"data": DATA}, "needs 'stage1_clip_clip': expected --weights=stage1_clip_clip=DIR"),
        ("mutual_benefit", "paper", {"data": DATA}, "needs 'decoder': expected --weights=decoder=DIR"),
    ],
)
def test_what_only_the_user_has_is_asked_for(name, scale, given, expected, tmp_path):
    made = registry.find(name)
    with pytest.raises(UsageError, match=expected):
        run_config(made, runner.select_runs(made, scale, 1)[0], Workdir(tmp_path, scale, **given))


@pytest.fixture
def command():
    """``unihetero study …`` within this process; gives the exit code."""
    parser = Parser(prog="unihetero study")
    cli.add_arguments(parser)

    def run(*words):
        options = parser.parse_args([str(word) for word in words])
        return options.run(options)

    return run


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("real_world", "--data=emoji"), "--data=emoji: 'emoji' has no directory; expected NAME=DIR"),
        (("alignment", "--scale=tinny"), "--scale=tinny: expected tiny, small or paper"),
        (("alignment", "--seeds=1", "--index=14"), "--index=14: expected 0 to 13, as --dry_run lists them"),
        (("all", "--only=vq_*"), "--only selects runs of one study"),
        (("llava",), "study llava has no scale tiny: expected paper"),
        (("scaling", "--data=emojy=/"), "--data=emojy=/: expected .*did you mean 'emoji'"),
        (("scaling", "--weights=siglp=/"), "--weights=siglp=/: expected .*did you mean 'siglip'"),
        (("real_world", "--data=emoji=/nowhere"), "--data=emoji=/nowhere: no such file or directory"),
    ],
)
def test_what_cannot_be_run_is_one_line(command, tmp_path, words, complaint):
    with pytest.raises(UsageError, match=complaint):
        command("run", *words, f"--workdir={tmp_path / 'studies'}")
    assert not (tmp_path / "studies" / "study.json").exists()


def test_what_a_workdir_remembers_is_asked_for_where_it_is_used(command, tmp_path):
    wanted = {"mine": "/gone", "emoji": "/gone"}
    place = Workdir(tmp_path, "tiny", wanted, {"clip": "/gone"}).save()
    with pytest.raises(UsageError, match=r"/gone: no such file or directory; expected --data=emoji=DIR"):
        command("run", "real_world", "--only=none/seed-0", f"--workdir={tmp_path}")
    # Another study's data may be gone, and weights may be a file.
    ours = registry.find("scaling")
    assert len(runner._missing(ours, place, runner.select_runs(ours, "tiny", 1))) == 12
    file = tmp_path / "vq16.safetensors"
    file.touch()
    check_given(Workdir(tmp_path, "tiny", {}, {"vq16": str(file)}), [ours])


def test_a_dry_run_lists_and_makes_nothing(command, tmp_path, capsys):
    assert (
        command("run", "all", "--seeds=2", "--data=emoji=/nowhere", "--dry_run", f"--workdir={tmp_path / 'new'}") == 0
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    # Numbered through all studies, as `--index` counts; what studies share is listed with the first of them.
    assert [int(number) for number, *_ in lines] == list(range(len(lines)))
    assert len([name for _, name, *_ in lines if name.startswith("alignment/")]) == 28
    assert len([name for _, name, *_ in lines if name.startswith("mutual_benefit/")]) == 32
    assert not (tmp_path / "new").exists()

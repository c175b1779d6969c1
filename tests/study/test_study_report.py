"""What a report says beside its claims: laws over sizes of data, the angle between gradients, what drawing keeps."""

from __future__ import annotations

import dataclasses
import json

import pytest
import runs

from unihetero_jax.study import figures, registry, report, report_data, runner, training_metrics
from unihetero_jax.study.definition import Claim, Metric, Scaling, Study
from unihetero_jax.study.run_config import run_config
from unihetero_jax.study.statistics import judge
from unihetero_jax.study.workdir import Workdir

FIXTURE = registry.find(str(runs.ROOT / "tests" / "fixtures" / "study.py"))
SIZES = {"100": 100.0, "200": 200.0, "400": 400.0, "800": 800.0}
STUDY = Study(
    **{
        **vars(FIXTURE),
        "factors": {"series": ("base", "semantic"), "size": tuple(SIZES)},
        "experiment": lambda levels, scale: _sized(levels, scale),
        "claims": (
            Claim("kept", "kept", "derived.kept", {"base-100": 1.0, "base-200": -1.0}),
            Claim("more", "more is better", "vqa.total.score", {"base-200": 1.0, "base-100": -1.0}),
        ),
        "metrics": (*FIXTURE.metrics, Metric("vqa.time.score", "the time"), Metric("vqa.battery.score", "nothing")),
        "scaling": Scaling(
            "vqa.total.score",
            "samples",
            {series: {f"{series}-{name}": size for name, size in SIZES.items()} for series in ("base", "semantic")},
        ),
    }
)
DRAWN = {"free_cosine": 0.6, "free_cosine_other": 0.4, "taught_cosine": 0.9, "taught_cosine_other": 0.5}
BY_POSITION = {"taught_cosine_by_position": [0.9, 0.9], "free_cosine_by_position": [0.7, 0.5]}

PROBES = {f"layer_{number:02}": {"weather": number / 10} for number in (1, 2, 3)} | {"adapter": {"weather": 0.9}}


def _sized(levels, scale):
    config = FIXTURE.experiment({"semantic": "1.0" if levels["series"] == "semantic" else "0.0"}, scale)
    config.train.steps = int(levels["size"])
    return config


def rows(arm):
    """Of a training: the semantic loss reaches the first layer alone."""
    for step in (1, 2, 3):
        row = {"step": step, "text": 1.0, "target_variance": step / 10}
        row["semantic"] = 0.5 if arm.levels["series"] == "semantic" else 0.0
        if step != 2:
            row |= {f"gradient_norm/{name}/{layer}": 1.0 for name in ("text", "semantic") for layer in (0, 1)}
            row |= {"gradient_norm/semantic/1": 0.0, "gradient_cosine/text_semantic/1": 0.0}
            row["gradient_cosine/text_semantic/0"] = -0.2 * step if arm.levels["series"] == "semantic" else 0.5
        yield row


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The results of a study whose errors follow power laws, as its runs would have left them."""
    made = Workdir(tmp_path_factory.mktemp("report"), "tiny").save()
    slopes = {"base": (2.0, 0.2), "semantic": (5.0, 0.4)}
    for job in runner.select_runs(STUDY, "tiny", 3):
        config = run_config(STUDY, job, made)
        scale, slope = slopes[job.arm.levels["series"]]
        score = 1 - scale * SIZES[job.arm.levels["size"]] ** -slope * (1 + 0.01 * job.seed)
        found = {
            "evaluation": {
                "vqa": {"total": {"score": score}, "time": {"score": -score}},
                "generation": DRAWN | BY_POSITION,
                "probes": PROBES,
            },
            "seconds": 1.0,
            "machine": {"device": "abacus"},
            "config": made.portable(config),
        }
        (made.run(config) / "run").mkdir(parents=True)
        (made.run(config) / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows(job.arm))))
        made.result_path(config).write_text(json.dumps(found))
    return made


@pytest.fixture(scope="module")
def made(place):
    return report_data.make_report(STUDY, place)


@pytest.fixture(scope="module")
def page(made):
    return report.page(made)


def test_laws_and_their_crossing_are_told(made, page):
    stored = made.as_json()["scaling"]
    assert {law["series"]: law["slope"][0] for law in stored["laws"]} == {
        "base": pytest.approx(0.2),
        "semantic": pytest.approx(0.4),
    }
    assert "<h2>Scaling</h2>" in page
    assert "semantic falls below base at 98 samples (interval 98 to 98)." in page
    (crossing,) = made.crossings
    unsure = dataclasses.replace(made, crossings=[dataclasses.replace(crossing, low=50.0, high=None)])
    assert "98 samples, but may never do so (if it does, beyond 50)." in report.page(unsure)


def test_curves_are_of_what_an_arm_learns(made, page):
    assert page.count('alt="Training losses over steps, mean over seeds"') == 1
    shown = {}

    def curves(losses):
        shown.update({name: {arm: len(seeds) for arm, seeds in arms.items()} for name, arms in losses.items()})
        return drawn(losses)

    drawn = figures.curves
    alone = json.loads(json.dumps(made.results["base-100"][0]))
    alone["config"]["data"]["mode"] = "generation"
    results = {**made.results, "base-100": {**made.results["base-100"], 0: alone}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "curves", curves)
        report.page(dataclasses.replace(made, results=results))
    drawing = {arm: 3 for arm in made.results if arm.startswith("semantic")}
    assert shown == {"text": {**dict.fromkeys(made.results, 3), "base-100": 2}, "semantic": drawing}


def test_angles_are_shown_where_both_objectives_reach(made, page):
    assert "<h2>Gradients of the objectives</h2>" in page
    angles = training_metrics.gradient_cosines(made.runs["semantic-100"][0] / "metrics.jsonl")
    assert angles == {"text · semantic, layer 0": [(1, -0.2), (3, pytest.approx(-0.6))]}


def test_what_not_every_arm_has_is_no_number(made):
    results = {**made.results, "base-100": {}}
    scores = report_data.metric_scores(results, "vqa.time.score")
    more = made.study.claims[1]
    parts = {"more": {"the time": judge(dataclasses.replace(more, metric="vqa.time.score"), scores)}}
    (_, told) = dataclasses.replace(made, parts=parts).as_json()["claims"]
    assert told["parts"] == {"the time": {"mean": None, "interval": [None, None], "seeds": 0}}


def test_an_angle_that_not_every_seed_has_is_shown():
    seeds = [{}, {"text · codes, layer 0": [(1, 0.5), (2, 0.3)]}]
    figure = figures.gradient_cosines({"an arm": seeds})
    (axes,) = figure.axes
    assert axes.get_lines()[0].get_ydata().tolist() == [0.5, 0.3]
    assert figure.legends[0].get_texts()[0].get_text() == "text · codes, layer 0"


def test_errors_by_position_are_drawn_of_the_seeds_that_have_them(made, page):
    assert "<h2>Generation by position</h2>" in page
    found = report._by_position(made.results["base-100"][0]["evaluation"]["generation"])
    assert found == {"teacher-forced": [0.9, 0.9], "free-running": [0.7, 0.5]}
    figure = figures.position_cosines({"drawn": [found, {"free-running": [0.5, 0.1]}], "not": []})
    drawn, nothing = figure.axes
    assert [line.get_ydata().tolist() for line in drawn.get_lines()] == [
        [0.9, 0.9],
        [pytest.approx(0.6), pytest.approx(0.3)],
    ]
    assert not nothing.get_lines()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(found)


def test_more_metrics_than_arms_are_listed_below_one_another(made):
    few = dataclasses.replace(made, means={"base-100": made.means["base-100"]})
    names = [metric.name for metric in made.metrics]
    assert len(names) == 2
    table = report._scores_table(few)
    assert table.startswith("<table><tr><th></th><th>base-100</th></tr>")
    assert all(f"<tr><td>{name} " in table for name in names)
    assert table.count("</tr>") == len(names) + 2
    many = report._scores_table(made)
    assert many.startswith("<table><tr><th>arm</th>")
    assert many.count("</tr>") == len(made.means) + 1


def test_training_has_numbers_that_claims_can_be_about(made):
    found = made.results["semantic-100"][0]["evaluation"]["training"]
    assert found["gradient_cosine"] == {"text_semantic": pytest.approx(-0.4), "text_drawn": pytest.approx(-0.4)}
    assert found["target_variance"] == pytest.approx(0.3)


def test_what_free_drawing_keeps(made):
    found = made.results["base-100"][0]["evaluation"]["derived"]
    assert found == {"kept": pytest.approx(0.5), "last_layer": {"weather": 0.3}}


def test_a_study_without_them_has_no_such_sections(tmp_path):
    made = report_data.make_report(FIXTURE, Workdir(tmp_path, "tiny").save())
    page = report.page(made)
    assert "<h2>Scaling</h2>" not in page
    assert "<h2>Gradients" not in page
    assert "for each part of the total" not in page


def test_scores_that_no_run_has_are_left_out(made):
    metrics = (*made.study.metrics, Metric("losses.generation.codes", "loss of nothing"))
    page = report.page(dataclasses.replace(made, study=dataclasses.replace(made.study, metrics=metrics)))
    assert "loss of nothing" not in page
    shown = ("vqa.total.score", "vqa.time.score")
    assert made.metrics == [metric for metric in made.study.metrics if metric.key in shown]


def test_the_command_that_makes_it_again_names_what_only_its_user_knows(made):
    file = runs.ROOT / "tests" / "fixtures" / "study.py"
    assert made.command() == f"unihetero study run {file} --workdir=runs/studies --scale=tiny --seeds=3"
    ours = registry.find("real_world")
    run = {"config": {"data": {"sources": {"emoji": {"root": "somewhere"}}}}}
    told = dataclasses.replace(made, study=ours, results={"none": {0: run}}).command()
    assert told == "unihetero study run real_world --workdir=runs/studies --scale=tiny --seeds=1 --data=emoji=DIR"


def test_a_total_is_taken_apart(made, page):
    kept, more = made.as_json()["claims"]
    assert kept["parts"] == {}
    assert list(more["parts"]) == ["the time"]
    assert more["parts"]["the time"]["mean"] == pytest.approx(-more["effect"])
    assert more["parts"]["the time"]["seeds"] == 3
    assert "These were not claimed beforehand" in page
    assert "<th>claim</th><th>the time</th></tr><tr><td>more</td>" in page

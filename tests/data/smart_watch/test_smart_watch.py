import dataclasses
import io
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from unihetero_jax.data.smart_watch import (
    IMAGE,
    POSITIONS,
    QUESTION_KINDS,
    TASKS,
    WEATHERS,
    Attributes,
    color_name,
    conversation,
    draw,
    encode_png,
    record,
    records,
    sample_attributes,
    turn_texts,
)

COLOR = (40, 90, 160)
CORNERS = {"top-left": (10, 10), "top-right": (174, 10), "bottom-left": (10, 194), "bottom-right": (174, 194)}
PLAIN = Attributes(
    hour=3,
    minute=0,
    second=30,
    weather="sunny",
    battery=50,
    weather_position="top-left",
    battery_position="bottom-right",
    color=COLOR,
)


def pixels(size=224, **changes):
    return np.asarray(draw(dataclasses.replace(PLAIN, **changes), size)).astype(int)


def is_white(pixel):
    return bool((pixel > 250).all())


def test_disc_has_the_radius_and_the_color():
    image = pixels(hour=6, minute=30, second=30)  # The hands point down: the upper half is bare.
    assert tuple(image[60, 112]) == COLOR
    assert tuple(image[112, 112 - 88]) == COLOR
    assert tuple(image[112, 112 + 87]) == COLOR
    assert is_white(image[112, 112 - 91])
    assert is_white(image[112, 112 + 91])
    # Chords of the bare rows between the icons and the hands, edges antialiased.
    rows = np.arange(46, 105)
    chords = ((255 - image[rows, :, 0]) / (255 - COLOR[0])).sum(axis=1)
    assert chords == pytest.approx(2 * np.sqrt(89.6**2 - (rows + 0.5 - 112) ** 2), abs=0.8)


@pytest.mark.parametrize("size", [64, 224])
def test_hands_point_where_the_time_says(size):
    scale, middle = size / 224, size / 2

    def whiteness(image, degrees_from_twelve, radius):
        x = middle + radius * scale * math.sin(math.radians(degrees_from_twelve))
        y = middle - radius * scale * math.cos(math.radians(degrees_from_twelve))
        box = image[int(y - 0.5) : int(y + 1.5), int(x - 0.5) : int(x + 1.5)]
        return (box.max(axis=(0, 1)) - COLOR).min() / (255 - max(COLOR))

    # 3:20:45, hour hand at 100 degrees (a third past the mark), minute hand at 120, second hand at 270.
    image = pixels(size, hour=3, minute=20, second=45)
    assert whiteness(image, 100, 40) > 0.8  # hour hand reaches 44.8
    assert whiteness(image, 100, 54) < 0.2
    assert whiteness(image, 120, 58) > 0.6  # minute hand reaches 62.7
    assert whiteness(image, 120, 71) < 0.2
    assert whiteness(image, 270, 76) > 0.3  # second hand reaches 80.6
    assert whiteness(image, 270, 85) < 0.2
    for elsewhere in (0, 45, 180, 225, 315):
        assert whiteness(image, elsewhere, 30) < 0.2


@pytest.mark.parametrize(("hour", "minute"), [(3, 0), (3, 58), (7, 29), (12, 45)])
def test_hour_hand_moves_between_its_marks(hour, minute):
    # The image with and without the hour hand differs along the hand alone: its middle lies in its direction.
    def share(hour):
        return (pixels(hour=hour, minute=minute, second=30)[..., 0] - COLOR[0]) / (255 - COLOR[0])

    rows, columns = np.mgrid[:224, :224] + 0.5 - 112
    hand = np.clip(share(hour) - share((hour + 6) % 12), 0, 1)
    angle = math.degrees(math.atan2((hand * columns).sum(), -(hand * rows).sum())) % 360
    assert angle == pytest.approx((hour % 12 + minute / 60) * 30, abs=1)


def test_hands_have_their_widths():
    image = pixels(hour=9, minute=0, second=30)
    share = (image[:, :, 0] - COLOR[0]) / (255 - COLOR[0])
    assert share[90:134, 90].sum() == pytest.approx(6, abs=0.3)  # hour hand, to the left
    assert share[60, 100:124].sum() == pytest.approx(4, abs=0.3)  # minute hand, up
    assert share[180, 100:124].sum() == pytest.approx(2, abs=0.3)  # second hand, down


def test_noon_and_midnight_look_alike():
    assert (pixels(hour=0) == pixels(hour=12)).all()
    assert (pixels(hour=1) != pixels(hour=12)).any()


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("weather", WEATHERS)
def test_weather_icon_sits_in_its_corner(weather, position):
    others = [other for other in POSITIONS if other != position]
    image = pixels(weather=weather, weather_position=position, battery_position=others[0])
    for corner in (position, *others[1:]):
        x, y = CORNERS[corner]
        inked = (image[y : y + 30, x : x + 30] < 240).any(axis=2)
        assert (inked.sum() > 100) == (corner == position)
    # Nothing outside the disc, the icon's box and the battery.
    x, y = CORNERS[position]
    image[y : y + 30, x : x + 30] = 255
    x, y = CORNERS[others[0]]
    image[y : y + 10, x : x + 50] = 255
    rows, columns = np.nonzero((image < 240).any(axis=2))
    assert np.hypot(rows - 111.5, columns - 111.5).max() < 90.5


def test_weather_icons_differ():
    icons = {weather: pixels(weather=weather)[10:40, 10:40].tobytes() for weather in WEATHERS}
    assert len(set(icons.values())) == 3


@pytest.mark.parametrize("charge", [0, 1, 37, 50, 99, 100])
@pytest.mark.parametrize("position", POSITIONS)
def test_battery_fill_is_as_wide_as_the_charge(charge, position):
    elsewhere = next(other for other in POSITIONS if other != position)
    image = pixels(battery=charge, battery_position=position, weather_position=elsewhere)
    x, y = CORNERS[position]
    row = image[y + 5, x : x + 25]
    green = (row[:, 1] > 150) & (row[:, 0] < 100)
    assert green.sum() == int(23 * charge / 100)
    assert not green[0]
    assert (row[0] < 60).all()  # the frame
    assert (row[24] < 60).all()
    assert (image[y, x : x + 25] < 60).all()
    assert (image[y + 9, x : x + 25] < 60).all()


def test_battery_text_begins_30_pixels_right_and_fits():
    for charge in (0, 57, 100):
        image = pixels(battery=charge, battery_position="top-right", weather_position="bottom-left")
        ink = np.nonzero((image[10:20, 200:] < 200).any(axis=(0, 2)))[0]
        assert 4 <= ink.min() <= 6
        assert ink.max() < 24
    assert (
        pixels(battery=57, battery_position="top-right")[8:22, 204:]
        != pixels(battery=58, battery_position="top-right")[8:22, 204:]
    ).any()


@pytest.mark.parametrize("size", [16, 33, 64, 1100])
def test_other_sizes_scale_the_same_picture(size):
    small = draw(PLAIN, size)
    assert small.size == (size, size)
    reference = draw(PLAIN, 1120).resize((size, size), Image.Resampling.BOX)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(reference)).mean() < 6


def test_png_is_lossless():
    image = draw(PLAIN, 48)
    decoded = Image.open(io.BytesIO(encode_png(image)))
    assert decoded.mode == "RGB"
    assert (np.asarray(decoded) == np.asarray(image)).all()


def test_attributes_are_uniform():
    drawn = [sample_attributes(0, i) for i in range(4000)]

    def check(values, options):
        counts = Counter(values)
        assert set(counts) == set(options)
        expected = len(drawn) / len(options)
        # Six standard deviations of a binomial count.
        assert all(abs(count - expected) < 6 * math.sqrt(expected) for count in counts.values())

    check([a.hour for a in drawn], range(13))
    check([a.minute for a in drawn], range(60))
    check([a.second for a in drawn], range(60))
    check([a.battery for a in drawn], range(101))
    check([a.weather for a in drawn], WEATHERS)
    pairs = [(p, q) for p in POSITIONS for q in POSITIONS if p != q]
    check([(a.weather_position, a.battery_position) for a in drawn], pairs)
    for channel in range(3):
        check([a.color[channel] // 16 for a in drawn], range(16))


def test_attributes_survive_json():
    assert Attributes.from_json(PLAIN.to_json()) == PLAIN


def test_records_are_pure_and_independent_of_their_order():
    forward = [record(5, i, task, 32, "paper") for i in range(4) for task in TASKS]
    backward = [record(5, i, task, 32, "paper") for i in reversed(range(4)) for task in reversed(TASKS)]
    assert forward == backward[::-1]
    assert forward[:3] == records(5, 0, 32, "paper")
    assert record(6, 0, "vqa", 32, "paper")["attributes"] != forward[0]["attributes"]


def test_records_do_not_change_between_releases():
    made = record(0, 0, "caption", 32, "paper")
    assert made["attributes"] == (
        '{"hour": 7, "minute": 56, "second": 28, "weather": "raining", "battery": 76, '
        '"weather_position": "top-right", "battery_position": "top-left", "color": [241, 22, 111]}'
    )
    assert made["conversations"][1]["value"] == (
        "The watch shows 07:56:28. The battery is at the top-left. The charge is 76%. The icon shows raining weather."
    )


def conversations(task, questions, count=1500):
    for index in range(count):
        attributes = sample_attributes(0, index)
        yield attributes, *conversation(attributes, 0, index, task, questions)


@pytest.mark.parametrize("questions", ["paper", "all"])
def test_vqa_answers_are_bare_and_true(questions):
    for attributes, turns, kinds in conversations("vqa", questions, 300):
        truth = {
            "weather": attributes.weather,
            "time": f"{attributes.hour:02d}:{attributes.minute:02d}:{attributes.second:02d}",
            "battery": f"{attributes.battery}%",
            "battery_pos": attributes.battery_position,
            "weather_pos": attributes.weather_position,
        }
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * len(kinds)
        assert [turn["value"] for turn in turns[1::2]] == [truth[kind] for kind in kinds]
        assert turns[0]["value"].startswith(f"{IMAGE}\n")
        assert sum(turn["value"].count(IMAGE) for turn in turns) == 1
        for kind, question in zip(kinds, turns[::2], strict=True):
            assert ("battery" in kind) == any(word in question["value"].lower() for word in ("battery", "charge")), (
                question
            )
            assert (kind in ("battery_pos", "weather_pos")) == any(
                word in question["value"].lower() for word in ("where", "corner", "position", "location")
            ), question


def test_vqa_of_the_paper_has_its_mixture():
    all_kinds = [kinds for _, _, kinds in conversations("vqa", "paper")]
    turns = Counter(len(kinds) for kinds in all_kinds)
    assert set(turns) == {1, 2, 3, 4}
    assert turns[1] / len(all_kinds) == pytest.approx(0.6**3, abs=0.05)
    assert np.mean([len(kinds) for kinds in all_kinds]) == pytest.approx(1 + 3 * 0.4, abs=0.1)
    kinds = Counter(kind for kinds in all_kinds for kind in kinds)
    for kind in ("weather", "time", "battery"):
        assert kinds[kind] / kinds.total() == pytest.approx(0.2, abs=0.03)
    for kind in ("battery_pos", "weather_pos"):
        assert kinds[kind] / kinds.total() == pytest.approx(0.2, abs=0.03)


def test_all_asks_every_question_in_every_order():
    all_kinds = [tuple(kinds) for _, _, kinds in conversations("vqa", "all")]
    assert all(sorted(kinds) == sorted(QUESTION_KINDS) for kinds in all_kinds)
    assert len(set(all_kinds)) == 120


def test_ten_phrasings_of_each_question_and_request():
    questions, captions, requests = Counter(), Counter(), Counter()
    for _, turns, kinds in conversations("vqa", "all"):
        for kind, turn in zip(kinds, turns[::2], strict=True):
            questions[kind, turn["value"].removeprefix(f"{IMAGE}\n")] += 1
    for _, turns, _ in conversations("caption", "paper"):
        captions[turns[0]["value"]] += 1
    for _, turns, _ in conversations("generation", "paper"):
        requests[" ".join(turns[0]["value"].split()[:2]), turns[1]["value"]] += 1
    assert Counter(kind for kind, _ in questions) == dict.fromkeys(QUESTION_KINDS, 10)
    assert len(captions) == 10
    assert len({answer for _, answer in requests}) == 10


@pytest.mark.parametrize("task", ["caption", "generation"])
def test_captions_and_requests_mention_what_the_paper_says(task):
    counts = Counter()
    total = 0
    for attributes, turns, kinds in conversations(task, "paper"):
        assert kinds == []
        words = turns[1]["value"] if task == "caption" else turns[0]["value"]
        total += 1
        counts["time"] += attributes.time in words
        counts["weather"] += attributes.weather in words
        counts["battery"] += f"{attributes.battery}%" in words
        counts["battery_pos"] += attributes.battery_position in words
        counts["weather_pos"] += attributes.weather_position in words
        assert not any(other in words for other in WEATHERS if other != attributes.weather)
        for position in POSITIONS:
            allowed = (attributes.weather_position, attributes.battery_position)
            assert position in allowed or position not in words
    assert counts["time"] == total
    for kind in ("weather", "battery", "battery_pos", "weather_pos"):
        assert counts[kind] / total == pytest.approx(0.5, abs=0.06)


def test_all_states_everything_and_names_the_color_which_the_papers_texts_do_not():
    for attributes, turns, _ in conversations("caption", "all", 200):
        assert all(attributes.answer(kind) in turns[1]["value"] for kind in QUESTION_KINDS)
        assert color_name(attributes.color) in turns[1]["value"].split(". ")[-1]
    for attributes, turns, _ in conversations("generation", "all", 200):
        assert all(attributes.answer(kind) in turns[0]["value"] for kind in QUESTION_KINDS)
        assert color_name(attributes.color) in turns[0]["value"].rstrip(".").split()[-3:]
    for task, questions in (("vqa", "all"), ("caption", "paper"), ("generation", "paper")):
        for _, turns, _ in conversations(task, questions, 200):
            said = " ".join(turn_texts(turns)).lower()
            assert not any(word in said for word in ("green", "blue", "purple", "pink", "yellow", "brown", "color"))


def test_exact_requests_give_the_shade_and_are_otherwise_the_same():
    for attributes, turns, _ in conversations("generation", "exact", 200):
        request, shade = turns[0]["value"].split(", rgb(")
        percents = [int(text) for text in shade.removesuffix("%).").split("%, ")]
        assert np.abs(np.multiply(percents, 2.55) - attributes.color).max() <= 1.28
        assert color_name(attributes.color) in request.split()[-3:]
    for task in TASKS:
        texts = {
            style: [[turn["value"].split(", rgb(")[0].rstrip(".") for turn in turns] for _, turns, _ in found]
            for style, found in ((style, conversations(task, style, 50)) for style in ("all", "exact"))
        }
        assert texts["all"] == texts["exact"]


def test_pictures_are_where_the_task_puts_them():
    for _, turns, _ in conversations("caption", "paper", 50):
        assert turns[0]["value"].startswith(f"{IMAGE}\n")
        assert IMAGE not in turns[1]["value"]
    for _, turns, _ in conversations("generation", "paper", 50):
        assert IMAGE not in turns[0]["value"]
        assert turns[1]["value"].endswith(f"\n{IMAGE}")
        assert IMAGE not in " ".join(turn_texts(turns))


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((250, 10, 20), "red"),
        ((10, 20, 90), "blue"),
        ((0, 110, 190), "blue"),
        ((20, 140, 30), "green"),
        ((250, 240, 10), "yellow"),
        ((255, 150, 10), "orange"),
        ((130, 20, 170), "purple"),
        ((255, 120, 190), "pink"),
        ((110, 60, 20), "brown"),
        ((20, 220, 230), "cyan"),
        ((5, 5, 5), "black"),
        ((130, 130, 130), "gray"),
        ((250, 250, 250), "white"),
    ],
)
def test_colors_have_the_names_that_people_give_them(rgb, name):
    assert color_name(rgb) == name

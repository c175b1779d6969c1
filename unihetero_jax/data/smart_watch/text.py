"""Texts about a watch face: questions, captions and requests, with about ten phrases each.

The mixture follows the generator released with arXiv 2505.23043 (``"paper"``). The style ``"all"`` is ours: every
question about an image in one conversation, and complete captions and requests, which also mention the color of the
disc; the released texts never do. ``"exact"`` is the same with a shade in each request, because the name of a color
leaves open what a picture of it should look like: ``a pink face, rgb(64%, 42%, 69%)``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from unihetero_jax.data.records.draws import Draws
from unihetero_jax.data.records.record import IMAGE_TOKEN
from unihetero_jax.data.smart_watch.face import QUESTION_KINDS, Attributes

TASKS = ("vqa", "caption", "generation")
QUESTION_STYLES = ("paper", "all", "exact")
IMAGE = IMAGE_TOKEN

Turn = dict[str, str]

_WHAT_KINDS = ("weather", "time", "battery")
_WHERE_KINDS = ("battery_pos", "weather_pos")
_WHAT_SHARE = 3 / 5
_EXTRA_TURNS, _EXTRA_TURN_PROBABILITY = 3, 0.4
_MENTION_PROBABILITY = 0.5
# Stream 0 belongs to the attributes.
_STREAMS = {task: 1 + number for number, task in enumerate(TASKS)}

_QUESTIONS = {
    "weather": (
        "What is the weather on the watch?",
        "What weather does the watch show?",
        "Which weather icon is displayed?",
        "How is the weather according to the watch?",
        "What does the weather icon indicate?",
        "What is the current weather?",
        "Is it sunny, cloudy or raining?",
        "Tell me the weather shown on the screen.",
        "Which weather condition is displayed?",
        "What kind of weather is it?",
    ),
    "time": (
        "What time is it?",
        "What time does the watch show?",
        "What is the time on the watch?",
        "Can you read the time?",
        "Tell me the time shown by the hands.",
        "Which time is displayed on the watch?",
        "What is the current time?",
        "Read the time from the watch face.",
        "What do the hands of the watch say?",
        "What is the exact time, with seconds?",
    ),
    "battery": (
        "What is the battery level?",
        "How much battery is left?",
        "How charged is the watch?",
        "What percentage does the battery show?",
        "Tell me the remaining battery.",
        "What is the charge of the battery?",
        "How full is the battery?",
        "What does the battery indicator read?",
        "Which battery percentage is displayed?",
        "What is the remaining charge?",
    ),
    "battery_pos": (
        "Where is the battery?",
        "Where is the battery indicator?",
        "In which corner is the battery?",
        "Which corner shows the battery level?",
        "Where on the screen is the battery displayed?",
        "What is the position of the battery?",
        "Tell me where the battery bar is.",
        "At which corner can I find the battery?",
        "Where can the battery status be seen?",
        "What is the location of the battery indicator?",
    ),
    "weather_pos": (
        "Where is the weather icon?",
        "Where is the weather shown?",
        "In which corner is the weather icon?",
        "Which corner shows the weather?",
        "Where on the screen is the weather displayed?",
        "What is the position of the weather icon?",
        "Tell me where the weather icon is.",
        "At which corner can I find the weather?",
        "Where can the weather be seen?",
        "What is the location of the weather icon?",
    ),
}

_CAPTION_QUESTIONS = (
    "Describe the watch.",
    "Describe this image.",
    "What do you see in the image?",
    "What does the watch show?",
    "Give a description of the watch face.",
    "Write a caption for this image.",
    "Please caption the image.",
    "Tell me about this watch.",
    "What is displayed on the screen?",
    "Summarize what the watch shows.",
)

_CAPTION_PHRASES = {
    "time": ("The time is {}.", "It is {}.", "The watch shows {}.", "The hands show {}."),
    "weather": ("The weather is {}.", "It is {} outside.", "The icon shows {} weather.", "The weather icon says {}."),
    "battery": ("The battery is at {}.", "{} of the battery is left.", "The battery shows {}.", "The charge is {}."),
    "battery_pos": (
        "The battery is in the {} corner.",
        "The battery is at the {}.",
        "The battery indicator sits {}.",
        "In the {} corner is the battery.",
    ),
    "weather_pos": (
        "The weather icon is in the {} corner.",
        "The weather is shown at the {}.",
        "The weather icon sits {}.",
        "In the {} corner is the weather icon.",
    ),
    "color": ("The face is {}.", "The disc is {}.", "The watch has a {} face.", "The color is {}."),
}

_REQUEST_OPENINGS = (
    "Generate a smart watch",
    "Draw a smart watch",
    "Create an image of a smart watch",
    "Please draw a watch face",
    "Show me a smart watch",
    "Make a picture of a watch",
    "I want a smart watch",
    "Design a smart watch screen",
    "Produce a watch face",
    "Paint a watch",
)

_REQUEST_PHRASES = {
    "time": ("showing {}", "at {}", "set to {}", "whose hands show {}"),
    "weather": ("{} weather", "a {} icon", "the weather {}", "a {} sky"),
    "battery": ("{} battery", "the battery at {}", "a charge of {}", "{} of battery left"),
    "battery_pos": ("the battery {}", "the battery in the {} corner", "the battery bar at the {}", "its battery {}"),
    "weather_pos": (
        "the weather {}",
        "the weather in the {} corner",
        "the weather icon at the {}",
        "its weather icon {}",
    ),
    "color": ("a {} face", "a {} disc", "the color {}", "a face in {}"),
}

_GENERATION_ANSWERS = (
    "Here is the watch.",
    "Here it is.",
    "Here you go.",
    "This is the watch.",
    "Here is the image.",
    "Sure.",
    "Of course.",
    "Here is your smart watch.",
    "Done.",
    "This is what you asked for.",
)

# Several examples where a name covers a wide region: navy is closer to black, and sky blue to cyan, than either is to
# pure blue.
_COLOR_EXAMPLES = {
    "black": ((0, 0, 0), (30, 30, 30)),
    "gray": ((90, 90, 90), (128, 128, 128), (170, 170, 170)),
    "white": ((255, 255, 255), (235, 235, 235)),
    "red": ((220, 20, 30), (240, 90, 80), (150, 15, 20)),
    "orange": ((255, 140, 0), (230, 100, 20), (245, 175, 110)),
    "yellow": ((240, 225, 40), (210, 200, 30), (245, 240, 150)),
    "green": ((40, 160, 50), (120, 230, 60), (20, 90, 40), (100, 120, 30), (160, 220, 150), (30, 240, 140)),
    "cyan": ((30, 200, 210), (30, 150, 150), (150, 235, 240)),
    "blue": ((30, 70, 220), (40, 145, 245), (20, 20, 100), (10, 100, 165), (120, 150, 225), (75, 45, 245)),
    "purple": ((120, 30, 160), (165, 40, 245), (70, 35, 100), (160, 110, 230), (190, 30, 190)),
    "pink": ((245, 110, 180), (235, 50, 140), (250, 180, 200), (190, 80, 150)),
    "brown": ((120, 70, 30), (75, 45, 15), (165, 110, 60)),
}

COLOR_NAMES = tuple(_COLOR_EXAMPLES)


def conversation(
    attributes: Attributes, seed: int, index: int, task: str, questions: str, hidden: Collection[str] = ()
) -> tuple[list[Turn], list[str]]:
    """Return the turns of one record about an image; a pure function of its arguments.

    Args:
        attributes: Attributes of the image.
        seed: Seed of the dataset.
        index: Number of the image.
        task: One of `TASKS`.
        questions: One of `QUESTION_STYLES`.
        hidden: Kinds that questions and captions leave out. Requests for the image mention them.

    Returns:
        The turns, human and gpt alternating, in LLaVA's form ``{"from": ..., "value": ...}``; and for ``"vqa"`` the
        kind of each question in turn, for the other tasks an empty list.
    """
    draws = Draws(seed, index, _STREAMS[task])
    everything = questions != "paper"
    if task == "vqa":
        return _vqa(attributes, draws, everything, hidden)
    if task == "caption":
        return _caption(attributes, draws, everything, hidden), []
    return _generation(attributes, draws, everything, shade=questions == "exact"), []


def color_name(rgb: Sequence[int]) -> str:
    """Return the basic color name, of twelve, with the nearest example by Euclidean distance in CIELAB (D65).

    Args:
        rgb: sRGB, each 0 to 255.
    """
    lab = _lab(rgb)
    return min(_LAB_EXAMPLES, key=lambda example: math.dist(lab, example[1]))[0]


def _vqa(
    attributes: Attributes, draws: Draws, everything: bool, hidden: Collection[str]
) -> tuple[list[Turn], list[str]]:
    """Return questions and bare answers, and the kind of each."""
    if everything:
        kinds = draws.shuffled(QUESTION_KINDS)
    else:
        count = 1 + sum(draws.chance(_EXTRA_TURN_PROBABILITY) for _ in range(_EXTRA_TURNS))
        kinds = [draws.choose(_WHAT_KINDS if draws.chance(_WHAT_SHARE) else _WHERE_KINDS) for _ in range(count)]
    # Removed after they are drawn, so that the other questions stay the same.
    kinds = [kind for kind in kinds if kind not in hidden] or [draws.choose(sorted({*QUESTION_KINDS} - {*hidden}))]
    turns: list[Turn] = []
    for kind in kinds:
        question = draws.choose(_QUESTIONS[kind])
        turns += _exchange(question if turns else f"{IMAGE}\n{question}", attributes.answer(kind))
    return turns, kinds


def _caption(attributes: Attributes, draws: Draws, everything: bool, hidden: Collection[str]) -> list[Turn]:
    """Return one question about the whole image and its answer."""
    question = draws.choose(_CAPTION_QUESTIONS)
    sentences = [
        draws.choose(_CAPTION_PHRASES[kind]).format(attributes.answer(kind))
        for kind in _mentioned(draws, everything)
        if kind not in hidden
    ]
    if everything:
        sentences.append(draws.choose(_CAPTION_PHRASES["color"]).format(color_name(attributes.color)))
    return _exchange(f"{IMAGE}\n{question}", " ".join(sentences))


def _generation(attributes: Attributes, draws: Draws, everything: bool, shade: bool) -> list[Turn]:
    """Return a request for the image, and the image."""
    opening = draws.choose(_REQUEST_OPENINGS)
    phrases = [
        draws.choose(_REQUEST_PHRASES[kind]).format(attributes.answer(kind)) for kind in _mentioned(draws, everything)
    ]
    if everything:
        phrases.append(draws.choose(_REQUEST_PHRASES["color"]).format(color_name(attributes.color)))
    if shade:
        phrases[-1] += ", rgb({}%, {}%, {}%)".format(*(round(value / 2.55) for value in attributes.color))
    time, *others = phrases
    request = f"{opening} {time}" + (f" with {_enumerate(others)}" if others else "") + "."
    return _exchange(request, f"{draws.choose(_GENERATION_ANSWERS)}\n{IMAGE}")


def _mentioned(draws: Draws, everything: bool) -> list[str]:
    """Return the kinds of attribute that a text mentions, the time first, the others each with probability 1/2."""
    others = [kind for kind in QUESTION_KINDS if kind != "time"]
    if not everything:
        others = [kind for kind in others if draws.chance(_MENTION_PROBABILITY)]
    return ["time", *draws.shuffled(others)]


def _exchange(human: str, gpt: str) -> list[Turn]:
    return [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]


def _enumerate(phrases: Sequence[str]) -> str:
    """Join phrases: ``a``, ``a and b``, ``a, b and c``."""
    *most, last = phrases
    return f"{', '.join(most)} and {last}" if most else last


def _lab(rgb: Sequence[int]) -> tuple[float, float, float]:
    """Return the CIELAB coordinates of an sRGB color (IEC 61966-2-1, white point D65)."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb))
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089
    fx, fy, fz = (v ** (1 / 3) if v > (6 / 29) ** 3 else v / (3 * (6 / 29) ** 2) + 4 / 29 for v in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


_LAB_EXAMPLES = [(name, _lab(rgb)) for name, examples in _COLOR_EXAMPLES.items() for rgb in examples]

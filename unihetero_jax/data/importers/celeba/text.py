"""Texts about a face: questions on its attributes, captions and requests, several phrases each.

Templated attribute questions, captions and requests follow arXiv 2505.23043, which does not publish the phrases; these
are ours. Questions are answered "yes" as often as "no", though most attributes are rare.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from unihetero_jax.data.records.draws import Draws
from unihetero_jax.data.records.record import IMAGE_TOKEN, Turn


class _Words(NamedTuple):
    """Words for an attribute: ``a person`` + ``verb`` + ``words``."""

    verb: str
    words: str


_WORDS = {
    "5_o_Clock_Shadow": _Words("has", "a five o'clock shadow"),
    "Arched_Eyebrows": _Words("has", "arched eyebrows"),
    "Attractive": _Words("is", "attractive"),
    "Bags_Under_Eyes": _Words("has", "bags under the eyes"),
    "Bald": _Words("is", "bald"),
    "Bangs": _Words("has", "bangs"),
    "Big_Lips": _Words("has", "big lips"),
    "Big_Nose": _Words("has", "a big nose"),
    "Black_Hair": _Words("has", "black hair"),
    "Blond_Hair": _Words("has", "blond hair"),
    "Blurry": _Words("picture", "blurry"),
    "Brown_Hair": _Words("has", "brown hair"),
    "Bushy_Eyebrows": _Words("has", "bushy eyebrows"),
    "Chubby": _Words("is", "chubby"),
    "Double_Chin": _Words("has", "a double chin"),
    "Eyeglasses": _Words("wears", "glasses"),
    "Goatee": _Words("has", "a goatee"),
    "Gray_Hair": _Words("has", "gray hair"),
    "Heavy_Makeup": _Words("wears", "heavy makeup"),
    "High_Cheekbones": _Words("has", "high cheekbones"),
    "Male": _Words("is", "male"),
    "Mouth_Slightly_Open": _Words("has", "a slightly open mouth"),
    "Mustache": _Words("has", "a mustache"),
    "Narrow_Eyes": _Words("has", "narrow eyes"),
    # Expressed by its opposite: "does not have no beard" is no answer.
    "No_Beard": _Words("has", "a beard"),
    "Oval_Face": _Words("has", "an oval face"),
    "Pale_Skin": _Words("has", "pale skin"),
    "Pointy_Nose": _Words("has", "a pointy nose"),
    "Receding_Hairline": _Words("has", "a receding hairline"),
    "Rosy_Cheeks": _Words("has", "rosy cheeks"),
    "Sideburns": _Words("has", "sideburns"),
    "Smiling": _Words("is", "smiling"),
    "Straight_Hair": _Words("has", "straight hair"),
    "Wavy_Hair": _Words("has", "wavy hair"),
    "Wearing_Earrings": _Words("wears", "earrings"),
    "Wearing_Hat": _Words("wears", "a hat"),
    "Wearing_Lipstick": _Words("wears", "lipstick"),
    "Wearing_Necklace": _Words("wears", "a necklace"),
    "Wearing_Necktie": _Words("wears", "a necktie"),
    "Young": _Words("is", "young"),
}
ATTRIBUTES = tuple(_WORDS)
"""The 40 attributes by the names and in the order of CelebA's own file."""

TASKS = ("vqa", "caption", "generation")
# Questions that are not answered with yes or no; the attribute names that could answer them.
_CHOICES = {
    "hair_color": {"Black_Hair": "black", "Blond_Hair": "blond", "Brown_Hair": "brown", "Gray_Hair": "gray"},
    "hair_style": {"Straight_Hair": "straight", "Wavy_Hair": "wavy"},
}
_OPPOSITE = "No_Beard"
_STREAMS = {task: 1 + number for number, task in enumerate(TASKS)}
_MENTION_PROBABILITY = 0.5

_YES_NO_QUESTIONS = {
    "has": (
        "Does the person have {}?",
        "Does this person have {}?",
        "Has the person got {}?",
        "Can you see {}?",
        "Is this a person with {}?",
        "Does the face in the picture have {}?",
        "Would you describe this as a person with {}?",
        "Tell me whether the person has {}.",
    ),
    "wears": (
        "Is the person wearing {}?",
        "Is this person wearing {}?",
        "Does the person wear {}?",
        "Can you see {}?",
        "Is this a person wearing {}?",
        "Does the person in the picture wear {}?",
        "Tell me whether the person is wearing {}.",
        "Is the person in the image wearing {}?",
    ),
    "is": (
        "Is the person {}?",
        "Is this person {}?",
        "Is the person in the picture {}?",
        "Is the person in the image {}?",
        "Would you say that the person is {}?",
        "Can you tell whether the person is {}?",
        "Tell me whether the person is {}.",
        "Do you see a person who is {}?",
    ),
    "picture": (
        "Is the picture {}?",
        "Is the image {}?",
        "Is this photo {}?",
        "Would you say that the picture is {}?",
        "Tell me whether the image is {}.",
    ),
}
_CHOICE_QUESTIONS = {
    "gender": (
        "Is this a man or a woman?",
        "Is the person a man or a woman?",
        "Do you see a man or a woman?",
        "Does the picture show a man or a woman?",
    ),
    "hair_color": (
        "What color is the hair?",
        "What is the hair color of the person?",
        "Which color does the hair have?",
        "Is the hair black, blond, brown or gray?",
        "Tell me the color of the hair.",
    ),
    "hair_style": (
        "Is the hair straight or wavy?",
        "What kind of hair does the person have, straight or wavy?",
        "Does the person have straight or wavy hair?",
        "Tell me whether the hair is straight or wavy.",
    ),
}
_CAPTION_QUESTIONS = (
    "Describe the person.",
    "Describe this image.",
    "What do you see in the image?",
    "Who is in the picture?",
    "Give a description of the face.",
    "Write a caption for this image.",
    "Please caption the image.",
    "Tell me about this person.",
    "What does the person look like?",
    "Summarize what the picture shows.",
)
_CAPTIONS = (
    "A photo of {}.",
    "This is {}.",
    "The picture shows {}.",
    "A portrait of {}.",
    "The image shows {}.",
    "Here we see {}.",
    "This is a photo of {}.",
    "In the picture there is {}.",
)
_REQUESTS = (
    "Generate a portrait of {}.",
    "Draw {}.",
    "Create an image of {}.",
    "Please draw a portrait of {}.",
    "Show me {}.",
    "Make a picture of {}.",
    "I want a photo of {}.",
    "Produce a photo of {}.",
    "Paint {}.",
    "Please show me a photo of {}.",
)
_REPLIES = (
    "Here is the portrait.",
    "Here it is.",
    "Here you go.",
    "This is the person.",
    "Here is the image.",
    "Sure.",
    "Of course.",
    "Done.",
    "This is what you asked for.",
)


def conversation(
    present: Collection[str], seed: int, index: int, task: str, questions: int
) -> tuple[tuple[Turn, ...], list[str]]:
    """Return the turns of one record about a face; a pure function of its arguments.

    Args:
        present: Names of the attributes that the face has, from ``ATTRIBUTES``.
        seed: Seed of the dataset.
        index: Number of the image.
        task: One of ``TASKS``.
        questions: Number of questions in a ``vqa`` record.

    Returns:
        The turns, human and gpt alternating; and for ``vqa`` what each question is about: an attribute's name,
        ``gender``, ``hair_color`` or ``hair_style``.
    """
    draws = Draws(seed, index, _STREAMS[task])
    if task == "vqa":
        return _vqa(present, draws, questions)
    person = describe(present, draws)
    if task == "caption":
        question, caption = draws.choose(_CAPTION_QUESTIONS), draws.choose(_CAPTIONS).format(person)
        return (Turn("human", f"{IMAGE_TOKEN}\n{question}"), Turn("gpt", caption)), []
    request, reply = draws.choose(_REQUESTS).format(person), draws.choose(_REPLIES)
    return (Turn("human", request), Turn("gpt", f"{reply}\n{IMAGE_TOKEN}")), []


def describe(present: Collection[str], draws: Draws) -> str:
    """Describe a person, such as ``a young woman with wavy black hair, wearing earrings, smiling``.

    Man or woman is always mentioned, and each other attribute that is true with probability one half.
    """
    mentioned = {name for name in ATTRIBUTES if _true(name, present) and draws.chance(_MENTION_PROBABILITY)}
    age = ["young" if "Young" in mentioned else "older"] if "Young" in mentioned or _mention_age(present, draws) else []
    adjectives = [_WORDS[name].words for name in ("Attractive", "Chubby", "Bald") if name in mentioned] + age
    noun = " ".join([*adjectives, _gender(present)])
    phrase = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    parts = _phrases(mentioned, "has")
    if hair := _hair(mentioned):
        parts.insert(0, hair)
    if parts:
        phrase += f" with {_enumerate(parts)}"
    if worn := _phrases(mentioned, "wears"):
        phrase += f", wearing {_enumerate(worn)}"
    if "Smiling" in mentioned:
        phrase += ", smiling"
    return f"{phrase}, in a blurry picture" if "Blurry" in mentioned else phrase


def _vqa(present: Collection[str], draws: Draws, questions: int) -> tuple[tuple[Turn, ...], list[str]]:
    """Return questions and bare answers, no question twice, and what each is about."""
    true = [name for name in ATTRIBUTES if _true(name, present)]
    false = [name for name in ATTRIBUTES if not _true(name, present)]
    choices = [kind for kind in _CHOICE_QUESTIONS if _answer(kind, present)]
    turns: list[Turn] = []
    kinds: list[str] = []
    for _ in range(questions):
        # A choice, such as man or woman, in one question of five; otherwise yes and no equally often.
        pool = choices if draws.below(5) == 0 else true if draws.chance(0.5) else false
        pool = [kind for kind in pool if kind not in kinds] or [kind for kind in ATTRIBUTES if kind not in kinds]
        kind = draws.choose(pool)
        if kind in _CHOICE_QUESTIONS:
            question, answer = draws.choose(_CHOICE_QUESTIONS[kind]), _answer(kind, present)
        else:
            verb, words = _WORDS[kind]
            question = draws.choose(_YES_NO_QUESTIONS[verb]).format(words)
            answer = "yes" if _true(kind, present) else "no"
        turns += [Turn("human", question if turns else f"{IMAGE_TOKEN}\n{question}"), Turn("gpt", answer)]
        kinds.append(kind)
    return tuple(turns), kinds


def _true(name: str, present: Collection[str]) -> bool:
    """Return whether the words for an attribute are true of a face."""
    return (name in present) != (name == _OPPOSITE)


def _answer(kind: str, present: Collection[str]) -> str:
    """Return the answer to a question that offers a choice; empty where CelebA has none, or several."""
    if kind == "gender":
        return _gender(present)
    answers = [answer for name, answer in _CHOICES[kind].items() if name in present]
    return answers[0] if len(answers) == 1 and "Bald" not in present else ""


def _gender(present: Collection[str]) -> str:
    return "man" if "Male" in present else "woman"


def _mention_age(present: Collection[str], draws: Draws) -> bool:
    return "Young" not in present and draws.chance(_MENTION_PROBABILITY)


def _phrases(mentioned: Collection[str], verb: str) -> list[str]:
    """Return the words of the mentioned attributes with a verb, except those of hair."""
    hair = {name for names in _CHOICES.values() for name in names}
    return [
        words.words for name, words in _WORDS.items() if name in mentioned and words.verb == verb and name not in hair
    ]


def _hair(mentioned: Collection[str]) -> str:
    """Describe the hair, such as ``wavy brown and gray hair``; empty where none of its attributes is mentioned."""
    style, color = (
        _enumerate([word for name, word in _CHOICES[kind].items() if name in mentioned])
        for kind in ("hair_style", "hair_color")
    )
    return " ".join(part for part in (style, color, "hair") if part) if style or color else ""


def _enumerate(phrases: Sequence[str]) -> str:
    """Join phrases: ``a``, ``a and b``, ``a, b and c``; empty for none."""
    *most, last = phrases or [""]
    return f"{', '.join(most)} and {last}" if most else last

"""``unihetero generate``: answers a prompt with text, pictures, or both."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unihetero_jax.errors import UsageError
from unihetero_jax.generate.pictures import is_picture_name, load_picture, save_picture
from unihetero_jax.generate.predict import Predictor
from unihetero_jax.generate.requests import Generated, Part, Picture, Request
from unihetero_jax.generate.sampling import Sampling, validate
from unihetero_jax.parallel.startup import cache_compilations, set_up_logging
from unihetero_jax.run.load import load_trained

PICTURE = "generated.png"
# Flags of how codes are chosen, and the fields of ``Choice`` that they set.
_CODES = {"code_temperature": "temperature", "code_top_k": "top_k", "code_top_p": "top_p"}


def run(
    workdir: Path,
    prompt: str,
    image: Path | None,
    out: Path | None,
    step: int | None,
    settings: Mapping[str, Any] | None = None,
) -> Generated:
    """Prints what the model says, and writes the pictures that it draws.

    A model that answers in words when it was shown no picture draws only if ``out`` asks for a picture.

    Args:
      workdir: of a training run.
      prompt: a question, or what to draw.
      image: a picture to ask about.
      out: where the result is written as well: a picture, or, without one, the text (unless the name is a picture's).
        A picture goes to ``WORKDIR/generated.png`` without it; further ones get a number: ``generated-2.png``.
      step: the checkpoint; the newest by default.
      settings: of ``Sampling``, by name; ``temperature``, ``top_k`` and ``top_p`` are those of text, with ``code_``
        before them those of codes; ``stop`` is one stop text.

    Returns:
      What was generated.

    Raises:
      UsageError: no such checkpoint; a prompt that is too long; a picture that cannot be read; a setting that cannot
        work; or an output that cannot be written.
    """
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("--prompt: expected UTF-8 text") from None
    sampling = _sampling(settings or {})
    set_up_logging()
    cache_compilations(workdir)
    trained = load_trained(workdir, step)
    predictor = Predictor(trained)
    if trained.config.model.generation != "codes" and (given := sorted(_CODES.keys() & (settings or {}).keys())):
        raise UsageError(
            f"--{given[0]}: this model draws no codes (config.model.generation={trained.config.model.generation!r})"
        )
    slots = trained.config.data.slots
    parts: list[Part] = [] if image is None else [load_picture(image, trained.config.data.image_size)]
    request = Request.of(*parts, prompt)
    length = predictor.slots(request)
    if length > slots:
        raise UsageError(f"--prompt takes {length} slots with its picture and markers; the model knows rows of {slots}")

    asked = image is None and out is not None and is_picture_name(out) and sampling.max_images > 0
    made = predictor.generate([request], replace(sampling, must_draw=asked and predictor.draws))[0]
    pictures = made.pictures
    if not pictures:
        _say(made.text, out)
    else:
        _show(made.segments, workdir / PICTURE if out is None else out)
    if pictures and pictures[0].forced:
        _note("the model did not ask to draw this; it was made to")
    if not predictor.draws:
        if asked or made.stop == "image":
            _note(f"no picture: the model has no head that draws ({predictor.missing_head} is 0)")
    elif made.stop == "image":
        _note(f"the model would go on with a picture; --max_images={sampling.max_images} is the limit")
    elif image is None and not pictures and sampling.max_images > 0:
        _note("the model answered in words; give --out=FILE.png to have it draw")
    return made


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    rest = dict(settings)
    default = Sampling()
    text = {name: rest.pop(name) for name in _CODES.values() if name in rest}
    codes = {name: rest.pop(flag) for flag, name in _CODES.items() if flag in rest}
    stops = (rest.pop("stop"),) if "stop" in rest else ()
    sampling = Sampling(replace(default.text, **text), replace(default.codes, **codes), stop_texts=stops, **rest)
    try:
        validate(sampling)
    except UsageError as error:
        flag = re.sub(r"^sampling\.(text\.)?", "--", str(error)).replace("--codes.", "--code_", 1)
        raise UsageError(flag) from None
    return sampling


def _show(segments: Sequence[str | Picture], path: Path) -> None:
    """Texts on the screen and pictures in files, in the order they were made."""
    number = 0
    for segment in segments:
        if isinstance(segment, str):
            print(segment)
            continue
        number += 1
        _save(segment, path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}"))


def _save(picture: Picture, path: Path) -> None:
    if picture.pixels is None:
        count, *size = picture.drawn.shape
        _note(
            f"no picture: the model made {count} embeddings of width {', '.join(map(str, size))} and has no pixel head "
            "that would show them (config.losses.pixel.weight is 0)"
        )
        return
    save_picture(picture.pixels, path)
    print(f"picture: {path}")


def _say(text: str, out: Path | None) -> None:
    print(text)
    if out is None:
        return
    if is_picture_name(out):
        _note(f"{out} was not written: the answer is text, not a picture")
        return
    try:
        out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--out={out}: cannot be written: {error.strerror}") from error


def _note(text: str) -> None:
    print(f"unihetero: {text}", file=sys.stderr)

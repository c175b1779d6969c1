"""Answer a prompt with text, pictures, or both."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unihetero_jax.errors import UsageError, nearest
from unihetero_jax.generate.pictures import is_picture_name, load_picture, save_picture
from unihetero_jax.generate.predict import Predictor
from unihetero_jax.generate.requests import Generated, Part, Picture, Request
from unihetero_jax.generate.sampling_options import Sampling, validate
from unihetero_jax.parallel.startup import cache_compilations, set_up_logging
from unihetero_jax.run.load_model import load_trained

PICTURE = "generated.png"
# Flags of how codes are chosen, and the fields of ``Choice`` that they set.
_CODES = {"code_temperature": "temperature", "code_top_k": "top_k", "code_top_p": "top_p"}
_SETTINGS = ("guidance", "pixel_guidance", "seed", "max_tokens", "max_images")


def run(
    workdir: Path,
    prompt: str,
    image: Path | None,
    out: Path | None,
    step: int | None,
    settings: Mapping[str, Any] | None = None,
) -> Generated:
    """Answer a prompt, print the text and write the pictures; arguments and errors of ``run.generate``."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("--prompt: expected UTF-8 text") from None
    sampling = _sampling(settings or {})
    set_up_logging()
    cache_compilations(workdir)
    predictor = Predictor(load_trained(workdir, step))
    config = predictor.config
    if config.model.generation != "codes" and (given := sorted(_CODES.keys() & (settings or {}).keys())):
        raise UsageError(
            f"--{given[0]}: this model generates no codes (config.model.generation={config.model.generation!r})"
        )
    parts: list[Part] = [] if image is None else [load_picture(image, config.data.image_size)]
    request = Request.of(*parts, prompt)
    length, slots = predictor.slots(request), config.data.seq_len
    if length > slots:
        raise UsageError(f"--prompt takes {length} slots with its picture and markers; the model knows rows of {slots}")
    wants_image = image is None and out is not None and is_picture_name(out) and sampling.max_images > 0
    sampling = replace(sampling, require_image=wants_image and predictor.generates_images)
    answer = predictor.generate([request], sampling)[0]
    if answer.pictures:
        _show(answer.segments, workdir / PICTURE if out is None else out)
    else:
        _print_text(answer.text, out)
    if answer.pictures and answer.pictures[0].forced:
        _note("the model did not begin this picture by itself; it was forced to")
    if not predictor.generates_images:
        if wants_image or answer.stop == "image":
            _note(f"no picture: the model has no head that generates images ({predictor.missing_head} is 0)")
    elif answer.stop == "image":
        _note(f"the model would continue with a picture; --max_images={sampling.max_images} is the limit")
    elif image is None and not answer.pictures and sampling.max_images > 0:
        _note("the model answered with text; give --out=FILE.png to have it generate a picture")
    return answer


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    rest = dict(settings)
    default = Sampling()
    text = {name: rest.pop(name) for name in _CODES.values() if name in rest}
    codes = {name: rest.pop(flag) for flag, name in _CODES.items() if flag in rest}
    stops = (rest.pop("stop"),) if "stop" in rest else ()
    for name in rest:
        if name not in _SETTINGS:
            known = (*_CODES.values(), *_CODES, "stop", *_SETTINGS)
            raise UsageError(f"unknown setting {name!r}: expected {', '.join(known)}{nearest(name, known)}")
    sampling = Sampling(replace(default.text, **text), replace(default.codes, **codes), stop_texts=stops, **rest)
    try:
        validate(sampling)
    except UsageError as error:
        flag = re.sub(r"^sampling\.(text\.)?", "--", str(error)).replace("--codes.", "--code_", 1)
        raise UsageError(flag) from None
    return sampling


def _show(segments: Sequence[str | Picture], path: Path) -> None:
    """Print texts and write pictures, in the order in which they were generated."""
    number = 0
    for segment in segments:
        if isinstance(segment, str):
            print(segment)
            continue
        number += 1
        _save(segment, path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}"))


def _save(picture: Picture, path: Path) -> None:
    if picture.pixels is None:
        count, *size = picture.predicted.shape
        _note(
            f"no picture: the model predicted {count} embeddings of width {', '.join(map(str, size))} and has no pixel "
            "head that turns them into pixels (config.losses.pixel.weight is 0)"
        )
        return
    save_picture(picture.pixels, path)
    print(f"picture: {path}")


def _print_text(text: str, out: Path | None) -> None:
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

"""``unihetero generate``: answers a prompt with text or with a picture."""

from __future__ import annotations

import sys
from pathlib import Path

from unihetero_jax.checkpoint import load_trained
from unihetero_jax.errors import UsageError
from unihetero_jax.generate.pictures import is_picture_name, load_picture, save_picture
from unihetero_jax.generate.predict import Drawn, Predictor
from unihetero_jax.startup import cache_compilations, speak

PICTURE = "generated.png"

# A caption that leaves nothing out takes about 70 tokens.
_LIMIT = 128


def run(workdir: Path, prompt: str, image: Path | None, out: Path | None, step: int | None) -> int:
    """Prints what the model says, and writes the picture if it draws one.

    A model that answers in words when it was shown no picture draws only if ``out`` asks for a picture.

    Args:
      workdir: of a training run.
      prompt: a question, or what to draw.
      image: a picture to ask about.
      out: where the result is written as well: a picture, or, without one, the text (unless the name is a picture's).
        A picture goes to ``WORKDIR/generated.png`` without it.
      step: the checkpoint; the newest by default.

    Returns:
      The exit code, 0.

    Raises:
      UsageError: no such checkpoint; a prompt that is too long; a picture that cannot be read; or an output that cannot
        be written.
    """
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("--prompt: expected UTF-8 text") from None
    speak()
    cache_compilations(workdir)
    trained = load_trained(workdir, step)
    predictor = Predictor(trained)
    slots = trained.config.data.slots
    shown = None if image is None else load_picture(image, trained.config.data.image_size)[None]
    length = len(predictor.prompt(prompt, None if shown is None else shown[0]))
    if length > slots:
        raise UsageError(f"--prompt takes {length} slots with its picture and markers; the model knows rows of {slots}")

    reply = predictor.reply(shown, [prompt], _LIMIT)[0]
    picture_asked = shown is None and out is not None and is_picture_name(out)
    if not (reply.wants_picture or picture_asked):
        _say(reply.text, out)
        if shown is None and predictor.draws:
            _note("the model answered in words; give --out=FILE.png to have it draw")
        return 0
    if not predictor.draws:
        _say(reply.text, out)
        _note("no picture: the model has no semantic head (config.objectives.semantic.weight is 0)")
        return 0
    drawn = predictor.draw([prompt], shown, _LIMIT)
    if drawn.text[0]:
        print(drawn.text[0])
    _save(drawn, workdir / PICTURE if out is None else out)
    if drawn.forced[0]:
        _note("the model did not ask to draw this; it was made to")
    return 0


def _save(drawn: Drawn, path: Path) -> None:
    if drawn.images is None:
        count, size = drawn.embeddings.shape[1:]
        _note(
            f"no picture: the model made {count} embeddings of width {size} and has no pixel head that would show them "
            "(config.objectives.pixel.weight is 0)"
        )
        return
    save_picture(drawn.images[0], path)
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

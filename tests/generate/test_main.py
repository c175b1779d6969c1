import numpy as np
import pytest
from kinds import CODES
from PIL import Image

from unihetero_jax.errors import UsageError
from unihetero_jax.generate.pictures import load_picture
from unihetero_jax.generate.predict import Predictor
from unihetero_jax.generate.requests import Generated, Picture
from unihetero_jax.generate.sampling_options import Choice
from unihetero_jax.run import generation as main


@pytest.fixture
def replies(monkeypatch, trained):
    """Decides what the model says and draws; the rest is the real thing.

    ``reply``: texts, and None where the model would draw.
    """
    said = {"reply": ["10:08:42"], "asked": []}

    def generate(self, requests, sampling):
        said["asked"].append((requests, sampling))
        segments, stop = [], "end"
        wanted = list(said["reply"])
        forced = sampling.require_image and None not in wanted
        for segment in [*wanted, *([None] if forced else [])]:
            if segment is not None:
                segments.append(segment)
            elif (
                not self.generates_images or sum(isinstance(each, Picture) for each in segments) == sampling.max_images
            ):
                stop = "image"
                break
            else:
                pixels = np.zeros((32, 32, 3), np.uint8) + np.asarray([200, 30, 60], np.uint8)
                segments.append(Picture(np.zeros((16, 32), np.float32), pixels if self.has_pixels else None, forced))
        return [Generated(tuple(segments), stop)]

    monkeypatch.setattr(main, "load_trained", lambda workdir, step: said.get("trained", trained))
    monkeypatch.setattr(Predictor, "generate", generate)
    return said


def test_an_answer_about_a_picture_of_any_size_and_mode(replies, tmp_path, capsys):
    # Half transparent: left is red, right shows the paper.
    image = Image.new("RGBA", (100, 60), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (50, 0, 100, 60))
    image.save(tmp_path / "watch.png")
    out = tmp_path / "answer.txt"
    assert main.run(tmp_path, "What time is it?", tmp_path / "watch.png", out, None).text == "10:08:42"
    [request], sampling = replies["asked"][0]
    shown, words = request.turns[0].parts
    assert words == "What time is it?"
    assert not sampling.require_image
    assert shown.shape == (32, 32, 3)
    assert shown[16, 4].tolist() == [255, 0, 0]
    assert shown[16, 28].tolist() == [255, 255, 255]
    assert capsys.readouterr().out == "10:08:42\n"
    assert out.read_text() == "10:08:42\n"


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16", "LA"])
def test_pictures_of_every_mode_are_read(tmp_path, mode):
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    if mode == "I;16":
        Image.fromarray(np.full((40, 40), 32768, np.uint16)).save(path)
        assert abs(int(load_picture(path, 32)[0, 0, 0]) - 128) <= 1
        return
    Image.new("RGB", (40, 40), "white").convert(mode).save(path)
    assert load_picture(path, 32).min() >= 250


@pytest.mark.parametrize("content", [b"no picture", b"", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"])
def test_a_file_that_is_no_picture_gets_one_line(replies, tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"--image=.*broken\.png") as caught:
        main.run(tmp_path, "What time is it?", path, None, None)
    assert "\n" not in str(caught.value)


def test_a_model_that_draws_leaves_a_picture(replies, tmp_path, capsys):
    replies["reply"] = ["Here it is.", None]
    main.run(tmp_path, "Draw a watch.", None, None, None)
    with Image.open(tmp_path / "generated.png") as picture:
        assert picture.size == (32, 32)
        assert picture.getpixel((3, 3)) == (200, 30, 60)
    printed = capsys.readouterr()
    assert printed.out == f"Here it is.\npicture: {tmp_path / 'generated.png'}\n"
    assert printed.err == ""
    main.run(tmp_path, "Draw a watch.", None, tmp_path / "own.png", None)
    assert (tmp_path / "own.png").read_bytes()[:4] == b"\x89PNG"


def test_an_answer_in_words_draws_only_when_asked(replies, tmp_path, capsys):
    main.run(tmp_path, "Draw a watch.", None, None, None)
    printed = capsys.readouterr()
    assert printed.out == "10:08:42\n"
    assert "--out=FILE.png" in printed.err
    assert list(tmp_path.iterdir()) == []
    main.run(tmp_path, "Draw a watch.", None, tmp_path / "forced.png", None)
    assert (tmp_path / "forced.png").exists()
    assert "did not begin this picture by itself" in capsys.readouterr().err


def test_a_picture_in_reply_to_a_picture(replies, tmp_path):
    replies["reply"] = ["Sure.", None]
    Image.new("RGB", (32, 32)).save(tmp_path / "in.png")
    main.run(tmp_path, "Draw it again.", tmp_path / "in.png", tmp_path / "out.png", None)
    assert (tmp_path / "out.png").exists()


def test_text_does_not_become_a_picture_file(replies, tmp_path, capsys):
    Image.new("RGB", (32, 32)).save(tmp_path / "in.png")
    main.run(tmp_path, "What time is it?", tmp_path / "in.png", tmp_path / "out.png", None)
    assert not (tmp_path / "out.png").exists()
    assert "was not written" in capsys.readouterr().err


def test_models_that_cannot_draw_say_why(replies, tmp_path, capsys, make_trained):
    replies["reply"] = ["Sure.", None]
    replies["trained"] = make_trained(**{"losses.pixel.weight": 0.0})
    main.run(tmp_path, "Draw a watch.", None, None, None)
    assert "16 embeddings of width 32 and has no pixel head" in capsys.readouterr().err
    replies["trained"] = make_trained(**{"losses.pixel.weight": 0.0, "losses.semantic.weight": 0.0})
    main.run(tmp_path, "Draw a watch.", None, None, None)
    assert "losses.semantic.weight is 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_beyond_the_models_rows_is_refused(replies, tmp_path):
    with pytest.raises(UsageError, match=r"--prompt takes \d+ slots .* rows of 160"):
        main.run(tmp_path, "watch " * 500, None, None, None)
    with pytest.raises(UsageError, match="expected UTF-8"):
        main.run(tmp_path, "\udcff", None, None, None)


def test_the_real_model_answers_and_draws(trained, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(main, "load_trained", lambda workdir, step: trained)
    main.run(tmp_path, "Draw a watch.", None, tmp_path / "watch.png", None)
    with Image.open(tmp_path / "watch.png") as picture:
        assert picture.size == (32, 32)
    assert f"picture: {tmp_path / 'watch.png'}" in capsys.readouterr().out


def test_several_pictures_between_texts(replies, tmp_path, capsys):
    replies["reply"] = ["First.", None, "Then.", None, "Done.", None]
    out = tmp_path / "watch.png"
    main.run(tmp_path, "Draw two.", None, out, None, {"max_images": 2})
    printed = capsys.readouterr()
    second = tmp_path / "watch-2.png"
    assert printed.out == f"First.\npicture: {out}\nThen.\npicture: {second}\nDone.\n"
    assert "--max_images=2 is the limit" in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["watch-2.png", "watch.png"]


def test_settings_are_those_of_text(replies, tmp_path):
    given = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "guidance": 2.0, "seed": 3, "max_tokens": 9, "max_images": 0}
    main.run(tmp_path, "Draw.", None, tmp_path / "no.png", None, given)
    sampling = replies["asked"][0][1]
    assert sampling.text == Choice(0.5, 7, 0.9)
    assert (sampling.guidance, sampling.seed, sampling.max_tokens, sampling.max_images) == (2.0, 3, 9, 0)
    assert not sampling.require_image
    for wrong, message in (
        ({"code_top_p": 0.0}, "^--code_top_p=0.0: expected above 0"),
        ({"stop": ""}, "^--stop_texts=.*expected no empty text"),
        ({"temperature": -1.0}, "^--temperature=-1.0: expected 0, or"),
        ({"max_tokens": 0}, "^--max_tokens=0: expected 1 or more"),
        ({"top_p": 1.5}, "^--top_p=1.5: expected above 0"),
    ):
        with pytest.raises(UsageError, match=message):
            main.run(tmp_path, "Draw.", None, None, None, wrong)


def test_settings_of_codes_are_for_models_that_draw_them(replies, tmp_path, make_trained):
    given = {"code_temperature": 0.5, "code_top_k": 3, "stop": "END"}
    with pytest.raises(UsageError, match=r"^--code_temperature: this model generates no codes .*generation='semantic'"):
        main.run(tmp_path, "Draw.", None, None, None, given)
    replies["trained"] = make_trained(**CODES)
    main.run(tmp_path, "Draw.", None, None, None, given)
    sampling = replies["asked"][0][1]
    assert (sampling.text, sampling.codes, sampling.stop_texts) == (Choice(), Choice(0.5, 3), ("END",))
    main.run(tmp_path, "Draw.", None, None, None, {"code_top_p": 0.9})
    # What is not given stays as it is: codes are drawn by chance.
    assert replies["asked"][1][1].codes == Choice(1.0, 0, 0.9)

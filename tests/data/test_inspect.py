import json
import re
import shutil

import numpy as np
import pytest
from importing.given import imported, picture
from PIL import Image

from unihetero_jax import cli
from unihetero_jax.data.importers.folder import FolderImporter
from unihetero_jax.data.inspect.dataset import inspect
from unihetero_jax.data.smart_watch import draw, sample_attributes
from unihetero_jax.data.smart_watch.builder import build
from unihetero_jax.errors import UsageError

COUNT = 24
BROKEN, HIDDEN = 4, 7


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("inspected") / "watch"
    build(directory, 30, 5, 32, workers=1)
    return directory


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    """Captioned pictures of several sizes and formats, one of them without its middle; without a tokenizer."""
    root = tmp_path_factory.mktemp("captions")
    rows = []
    for n in range(COUNT):
        kind = ("jpeg", "png")[n % 2]
        data = picture(n, (40 + n, 30), kind.upper())
        (root / f"{n}.{kind}").write_bytes(data[: len(data) // 2] + data[-2:] if n == BROKEN else data)
        rows.append({"image": f"{n}.{kind}", "caption": "c" * (n + 10) + ("\x07\u202ez" if n == HIDDEN else "")})
    (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    imported(FolderImporter(str(root), tables=(str(root / "captions.jsonl"),), prompts=("What?",)), root / "data")
    return root / "data"


def numbers_of(directory, capsys, **options):
    inspect(directory, as_json=True, **options)
    return json.loads(capsys.readouterr().out)


def test_summary_says_what_is_there(built, capsys):
    inspect(built)
    printed = capsys.readouterr().out
    assert re.search(r"train_vqa +30 ", printed)
    assert re.search(r"test_generation +5 ", printed)
    assert re.search(r"train_vqa .*PNG 100% +32, 32, 32 +32, 32, 32\n", printed)
    assert "tokenizer of" in printed
    first = sample_attributes(0, 0)
    assert f"{first.time}, {first.weather} {first.weather_position}, battery {first.battery}%" in printed
    assert max(len(line) for line in printed.splitlines() if not line.startswith("  ")) < 200


def test_lengths_are_least_mean_most(built, capsys):
    inspect(built)
    pattern = r"^\w+_\w+ +[\d,]+ +\d+ +[\d.]+ +(\d+), ([\d.]+), (\d+) +(\d+), ([\d.]+), (\d+)$"
    rows = re.findall(pattern, capsys.readouterr().out, re.MULTILINE)
    assert len(rows) == 6
    for row in rows:
        for least, mean, most in (row[:3], row[3:]):
            assert 0 < int(least) <= float(mean) <= int(most) < 300


def test_numbers_of_any_dataset(captions, capsys):
    found = numbers_of(captions, capsys)
    assert found["tokenizer_pieces"] is None
    assert found["provenance"]["prompts"] == ["What?"]
    made = found["splits"]["train_caption"]
    assert (made["records"], made["shards"], made["sampled"]) == (COUNT, 1, COUNT)
    assert made["formats"] == {"JPEG": COUNT // 2, "PNG": COUNT // 2}
    assert (made["width"]["least"], made["width"]["most"]) == (40, 40 + COUNT - 1)
    assert made["height"] == {"least": 30, "median": 30.0, "mean": 30.0, "most": 30}
    assert made["answer_characters"]["least"] == 10
    assert made["characters"]["least"] == 10 + len("What?")
    assert made["tokens"] is None
    assert made["failures"] == {"undecodable": 1}
    assert made["first_failures"]["undecodable"].startswith(f"record {BROKEN}: image of")


def test_a_sample_is_spread_over_the_records_and_the_same_every_time(captions, capsys):
    made = numbers_of(captions, capsys, sample=4)["splits"]["train_caption"]
    assert made["sampled"] == 4
    assert (made["width"]["least"], made["width"]["most"]) == (40, 40 + 18)
    assert made == numbers_of(captions, capsys, sample=4)["splits"]["train_caption"]
    with pytest.raises(UsageError, match="sample=0"):
        inspect(captions, sample=0)


def test_hidden_characters_are_spelled_out(tmp_path, capsys):
    (tmp_path / "0.png").write_bytes(picture(0, kind="PNG"))
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": "0.png", "caption": "a\x1b[31m\u202eb\nc"}) + "\n")
    imported(FolderImporter(str(tmp_path), tables=(str(tmp_path / "t.jsonl"),)), tmp_path / "data")
    inspect(tmp_path / "data")
    printed = capsys.readouterr().out
    assert r"a\x1b[31m\u202eb ⏎ c" in printed
    assert "\x1b" not in printed


def test_grid_shows_the_first_training_images(built, tmp_path):
    inspect(built, tmp_path / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    side = 192  # 32 pixels, enlarged six times
    for number in (0, 7, 23):
        x, y = 20 + number % 6 * (side + 20), 20 + number // 6 * (side + 68)
        shown = sheet[y + 3 : y + side : 6, x + 3 : x + side : 6]
        assert (shown == np.asarray(draw(sample_attributes(0, number), 32))).all()
        assert (sheet[y + side + 2 : y + side + 46, x : x + side] < 128).any()  # the legend


def test_grid_of_any_dataset_leaves_out_what_cannot_be_decoded(captions, tmp_path, capsys):
    inspect(captions, tmp_path / "grid.png")
    assert f"wrote {COUNT - 1} images" in capsys.readouterr().out
    sheet = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).astype(int)
    tile = sheet[20:212, 20:212]
    # 40 × 30 pixels in a square: bands of grey above and below.
    assert (tile[:20] == 127).all()
    assert (tile[60:130].std(axis=(0, 1)) > 20).all()
    assert (sheet[214:300, 20:212] < 128).any()  # the caption


def test_histograms_draw_every_split(captions, built, tmp_path):
    for number, directory in enumerate((captions, built)):
        inspect(directory, histograms=tmp_path / f"{number}.png")
        drawn = np.asarray(Image.open(tmp_path / f"{number}.png").convert("RGB")).astype(int)
        assert drawn.shape[1] == 1320
        # The first colour is that of the first task; of the captions' tokens there is nothing to draw.
        blue = (np.abs(drawn - (0x25, 0x63, 0xEB)).max(axis=-1) < 8).sum(axis=0)
        assert blue[:660].any()
        assert blue[660:].any()


def test_an_empty_split_is_told_and_not_read(captions, tmp_path, capsys):
    shutil.copytree(captions, tmp_path / "d")
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    manifest["counts"]["test_caption"] = 0
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(manifest))
    inspect(tmp_path / "d")
    assert re.search(r"test_caption +0 +0 +0.0 +– +–\n", capsys.readouterr().out)


def test_a_damaged_shard_is_named_after_everything_else(captions, tmp_path, capsys):
    shutil.copytree(captions, tmp_path / "d")
    [shard] = (tmp_path / "d").glob("*.array_record-*")
    data = bytearray(shard.read_bytes())
    data[20_000:20_064] = bytes(64)
    shard.write_bytes(data)
    assert cli.main(["data", "inspect", str(tmp_path / "d")]) == 2
    out, err = capsys.readouterr()
    assert re.search(r"sampled records cannot be used: .*unreadable", out)
    assert f"{shard}, record " in err
    assert err.count("\n") == 1
    shard.write_bytes(data[:-1])
    with pytest.raises(UsageError, match=rf"{shard.name} has .* bytes"):
        inspect(tmp_path / "d")


def test_a_damaged_watch_is_left_out_of_the_grid(built, tmp_path, capsys):
    shutil.copytree(built, tmp_path / "d")
    [shard] = (tmp_path / "d").glob("*-train_vqa.array_record-*")
    data = bytearray(shard.read_bytes())
    data[5_000:5_064] = bytes(64)
    shard.write_bytes(data)
    with pytest.raises(UsageError, match=f"cannot be read; the first: {shard}, record"):
        inspect(tmp_path / "d", tmp_path / "grid.png")
    [pictures] = re.findall(r"wrote (\d+) images", capsys.readouterr().out)
    assert 0 < int(pictures) < 24


def test_text_only_datasets_have_no_grid(tmp_path, capsys):
    from unihetero_jax.data.importers.llava import LlavaImporter

    said = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    (tmp_path / "t.json").write_text(json.dumps([{"id": "0", "conversations": said}]))
    imported(LlavaImporter((str(tmp_path / "t.json"),)), tmp_path / "d")
    inspect(tmp_path / "d")
    assert "(no image)" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no image of a training split"):
        inspect(tmp_path / "d", tmp_path / "grid.png")


def test_errors_name_the_file(built, tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        inspect(tmp_path / "nowhere")
    for name in ("grid", "histograms"):
        with pytest.raises(UsageError, match=rf"missing/{name}\.png"):
            inspect(built, **{name: tmp_path / "missing" / f"{name}.png"})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "missing DIR, or --config=FILE.py"),
        (["{built}", "--config=c.py"], "expected a dataset or a config, not both"),
        (["{built}", "--rows=r.png"], "expected --config=FILE.py with it"),
        (["{built}", "--config.data.seq_len=3"], "--config.data.seq_len: there is no config that it could change"),
        (["--config=c.py", "--grid=g.png"], "--grid is for a dataset DIR"),
        (["--config=c.py", "--sample=3"], "--sample is for a dataset DIR"),
        (["{built}", "--sample=x"], "--sample"),
        (["{built}", "--sample=-1"], "sample=-1 is impossible"),
        (["nowhere"], "nowhere: no such directory"),
    ],
)
def test_wrong_arguments_get_one_line(arguments, expected, built, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "inspect", *(part.format(built=built) for part in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert expected in err
    assert err.count("\n") == 1

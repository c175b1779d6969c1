import re

import numpy as np
import pytest
from PIL import Image

from unihetero_jax.data.inspect import inspect
from unihetero_jax.data.smart_watch import draw, sample_attributes
from unihetero_jax.data.smart_watch.builder import build
from unihetero_jax.errors import UsageError


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("inspected") / "watch"
    build(directory, 30, 5, 32, workers=1)
    return directory


def test_summary_says_what_is_there(built, capsys):
    inspect(built)
    printed = capsys.readouterr().out
    assert re.search(r"train_vqa +30 ", printed)
    assert re.search(r"test_generation +5 ", printed)
    assert "32 x 32 x 3" in printed
    assert "tokenizer of" in printed
    first = sample_attributes(0, 0)
    assert f"{first.time}, {first.weather} {first.weather_position}, battery {first.battery}%" in printed


def test_lengths_are_least_mean_most(built, capsys):
    inspect(built)
    rows = re.findall(r"^\w+_\w+ +[\d,]+ +(\d+), ([\d.]+), (\d+)$", capsys.readouterr().out, re.MULTILINE)
    assert len(rows) == 6
    assert all(0 < int(least) <= float(mean) <= int(most) < 300 for least, mean, most in rows)


def test_grid_shows_the_first_training_images(built, tmp_path):
    inspect(built, tmp_path / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    side = 192  # 32 pixels, enlarged six times
    for number in (0, 7, 23):
        x, y = 20 + number % 6 * (side + 20), 20 + number // 6 * (side + 68)
        shown = sheet[y + 3 : y + side : 6, x + 3 : x + side : 6]
        assert (shown == np.asarray(draw(sample_attributes(0, number), 32))).all()
        assert (sheet[y + side + 2 : y + side + 46, x : x + side] < 128).any()  # the legend


def test_errors_name_the_file(built, tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        inspect(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"missing/grid\.png"):
        inspect(built, tmp_path / "missing" / "grid.png")

"""The benchmark of the emoji set, on a package of a few pictures: both importers give the same records."""

from __future__ import annotations

import json
import runpy

import runs
from given import picture, stored

SCRIPT = runs.ROOT / "tests" / "benchmarks" / "emoji.py"
TONE = {"image": "1-1f3fb.png", "has_img_google": True}
PAIR = {"image": "1-1f3fb-1f3ff.png", "has_img_google": True}
ABSENT = {"image": "1-1f3fd.png", "has_img_google": False}
EMOJIS = [
    {
        "name": "PEOPLE",
        "image": "1.png",
        "category": "People",
        "has_img_google": True,
        "skin_variations": {"1F3FB": TONE, "1F3FB-1F3FF": PAIR, "1F3FD": ABSENT},
    },
    *({"name": f"FLAG {n}", "image": f"f{n}.png", "category": "Flags", "has_img_google": True} for n in range(20)),
]


def test_a_table_and_tars_give_the_same_records(tmp_path, capsys):
    package, out = tmp_path / "package", tmp_path / "emoji"
    images = package / "img" / "google" / "64"
    images.mkdir(parents=True)
    (package / "emoji.json").write_text(json.dumps(EMOJIS))
    for number, name in enumerate(["1", "1-1f3fb", "1-1f3fb-1f3ff", *(f"f{n}" for n in range(20))]):
        (images / f"{name}.png").write_bytes(picture(number, (8, 8), "PNG", "RGBA"))
    assert runpy.run_path(str(SCRIPT))["main"]([str(package), f"--out={out}"]) == 0
    assert "23 records and 23 of 23 emojis; 0 differ" in capsys.readouterr().out
    records = stored(out / "folder", "train_caption") + stored(out / "folder", "test_caption")
    captions = {record["conversations"]["value"][1].decode() for record in records}
    assert {"people", "people: light skin tone", "people: light skin tone, dark skin tone", "flag 7"} <= captions

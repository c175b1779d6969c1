"""Features on disk: written record after record, read by index, and laid into rows beside their images."""

import json
import pickle

import numpy as np
import pytest
from coder import WordCoder, picture

from unihetero_jax.data.features import About, Features, SplitWriter, TowerAbout, write_about
from unihetero_jax.data.invalid import InvalidRecord
from unihetero_jax.data.mixture import Entry, Mixture
from unihetero_jax.data.packing import FeatureShape, RowShape, pack
from unihetero_jax.data.pipeline import BatchStream
from unihetero_jax.data.sample import FEATURES, Role, record_sample
from unihetero_jax.errors import UsageError

SHAPES = (FeatureShape("understanding_tower", 2, 3, "float16"), FeatureShape("pixel_tower", 2, 1, "int32"))
# Images of each record, and whether they could be decoded.
RECORDS = [[True, True], [], [True], [False]]
PER_IMAGE = {Role.INPUT: 2, Role.TARGET: 2, Role.BOTH: 2}


def numbers(shape: FeatureShape, count: int) -> np.ndarray:
    values = 1 + np.arange(count * shape.tokens * shape.width)
    return values.reshape(count, shape.tokens, shape.width).astype(shape.dtype)


@pytest.fixture
def folder(tmp_path):
    with SplitWriter(tmp_path, "train_vqa", SHAPES) as writer:
        for record in RECORDS:
            writer.add_record(record)
        for part in (slice(0, 3), slice(3, 4)):
            writer.add_features({shape.tower: numbers(shape, 4)[part] for shape in SHAPES})
        about = writer.close()
    assert (about.records, about.images, list(about.undecodable)) == (4, 4, [3])
    towers = {shape.tower: TowerAbout({}, None, shape.tokens, shape.width, shape.dtype) for shape in SHAPES}
    write_about(tmp_path, About("0", towers, {"train_vqa": about}))
    return tmp_path


def record(images: int) -> dict:
    text = "<image>" * images + "what"
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "this"}]
    return {"images": [picture(number) for number in range(images)], "conversations": turns}


def test_a_record_has_the_features_of_its_images(folder):
    features = Features(folder, ["pixel_tower", "understanding_tower"])
    source = features.attach({"vqa": [record(2), record(0), record(1), record(1)]}, "train")["vqa"]
    assert len(source) == 4
    for shape in SHAPES:
        made = numbers(shape, 4)
        for index, part in enumerate((slice(0, 2), slice(2, 2), slice(2, 3), slice(3, 4))):
            found = source[index][FEATURES][shape.tower]
            assert found.dtype == shape.dtype
            np.testing.assert_array_equal(found, made[part])
    # Plain NumPy reads the files.
    np.testing.assert_array_equal(np.load(folder / "train_vqa.offsets.npy"), [0, 2, 2, 3, 4])
    np.testing.assert_array_equal(np.load(folder / "train_vqa.pixel_tower.npy"), numbers(SHAPES[1], 4))


def test_features_are_packed_where_their_images_are(folder):
    features = Features(folder, [shape.tower for shape in SHAPES])
    source = features.attach({"vqa": [record(2), record(0), record(1), record(1)]}, "train")["vqa"]
    samples = [record_sample(source[index], WordCoder(), PER_IMAGE, 4) for index in (2, 1, 0)]
    batch = pack([samples, []], RowShape(60, 4, 4, features.shapes))
    for shape in SHAPES:
        found, made = batch[f"{shape.tower}_features"], numbers(shape, 4)
        assert found.shape == (2, 4, shape.tokens, shape.width)
        assert found.dtype == shape.dtype
        np.testing.assert_array_equal(found[0], [made[2], made[0], made[1], np.zeros_like(made[0])])
        assert not found[1].any()


def test_workers_map_the_files_themselves(folder):
    features = Features(folder, [shape.tower for shape in SHAPES])
    source = features.attach({"vqa": [record(2), record(0), record(1), record(1)]}, "train")["vqa"]
    sent = pickle.dumps(source)
    values = numbers(SHAPES[0], 4).tobytes()
    assert values in pickle.dumps(np.array(source.arrays["understanding_tower"]))
    assert values not in sent
    again = pickle.loads(sent)
    for index in range(4):
        for name, array in source[index][FEATURES].items():
            np.testing.assert_array_equal(again[index][FEATURES][name], array)
    assert all(isinstance(array, np.memmap) for array in again.arrays.values())
    shape = RowShape(60, 4, 4, features.shapes)
    made = []
    for workers in (0, 2):
        stream = BatchStream(
            Mixture([Entry("vqa", source, 1.0)], seed=0),
            WordCoder(),
            PER_IMAGE,
            shape,
            batch_size=3,
            rows=range(3),
            window=2,
            threads=1,
            read_ahead=1,
            max_bad_records=99,
            workers=workers,
        )
        made.append([next(stream) for _ in range(3)])
        stream.close()
    for (batch, _), (other, _) in zip(*made, strict=True):
        assert batch["pixel_tower_features"].any()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def test_a_record_with_other_images_than_its_features_is_skipped(folder):
    source = Features(folder, ["pixel_tower"]).attach({"vqa": [record(1)] * 4}, "train")["vqa"]
    with pytest.raises(InvalidRecord, match="1 images, and features of 2 by pixel_tower"):
        record_sample(source[0], WordCoder(), PER_IMAGE, 4)


def test_what_was_announced_has_to_come(tmp_path):
    with SplitWriter(tmp_path, "train_vqa", SHAPES) as writer:
        writer.add_record([True])
        with pytest.raises(AssertionError, match=r"features of \{0\} images, announced 1"):
            writer.close()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema_version": 9}, "schema version 9, this program reads 1"),
        ({"towers": {}}, "no features of pixel_tower; it has "),
        ({"towers": 3}, "cut short, or not made by"),
    ],
)
def test_another_manifest_is_refused(folder, change, complaint):
    path = folder / "features.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match=complaint):
        Features(folder, ["pixel_tower"])


def test_an_array_of_another_shape_is_refused(folder):
    path = folder / "features.json"
    values = json.loads(path.read_text())
    values["towers"]["understanding_tower"]["tokens"] = 3
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=r"understanding_tower\.npy: float16\[4, 2, 3\], .* says float16\[4, 3, 3\]"):
        Features(folder, ["understanding_tower"]).attach({"vqa": range(4)}, "train")

"""Features on disk: written record after record, read by index, and laid into rows beside their images."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from coder import WordCoder, picture
from streams import assert_same, batch_stream

from unihetero_jax.data.features import About, Features, SplitWriter, TowerAbout, write_about
from unihetero_jax.data.mixing import Mixture, Source
from unihetero_jax.data.packing import slots
from unihetero_jax.data.packing.batch_stream import BatchStream
from unihetero_jax.data.packing.packed_batch import FeatureShape, RowShape, pack
from unihetero_jax.data.packing.sample import FEATURES, UNDECODABLE, record_sample
from unihetero_jax.data.packing.slots import Role
from unihetero_jax.data.records.images import decode_into
from unihetero_jax.data.records.invalid import SKIP_REASONS, InvalidRecord
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
    alone = pack([samples, []], RowShape(60, 4, 4, features.shapes, pixels=False))
    batch = pack([samples, []], RowShape(60, 4, 4, features.shapes))
    for shape in SHAPES:
        found, made = batch[f"{shape.tower}_features"], numbers(shape, 4)
        assert found.shape == (2, 4, shape.tokens, shape.width)
        assert found.dtype == shape.dtype
        np.testing.assert_array_equal(found[0], [made[2], made[0], made[1], np.zeros_like(made[0])])
        assert not found[1].any()
    assert batch.pop("images").any()
    assert_same([(alone, {})], [(batch, {})])


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
        stream = batch_stream(
            Mixture([Source("vqa", source, 1.0)], seed=0),
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


BROKEN = {7: b"", 21: picture(1)[:40], 22: b"no picture", 40: picture(1, side=9)}
MAX_PIXELS = 80


class Uneven:
    """Records of uneven length with two pictures each, of which some cannot be decoded, each for its own reason."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, number: int) -> dict:
        images = [picture(number), BROKEN.get(number, picture(number + 100))]
        return {**record(2), "images": images, "conversations": self._turns(number)}

    def _turns(self, number: int) -> list[dict]:
        words = "<image>" * 2 + "word " * (number * 7919 % 97 % 12)
        return [{"from": "human", "value": words}, {"from": "gpt", "value": f"n{number}"}]

    def store(self, folder) -> Features:
        """The features of every picture, as ``unihetero towers features`` stores them."""
        shape = SHAPES[0]
        with SplitWriter(folder, "train_vqa", [shape]) as writer:
            for number in range(len(self)):
                good = [True, number not in BROKEN]
                writer.add_record(good)
                values = np.full((2, shape.tokens, shape.width), number + 1, shape.dtype)
                writer.add_features({shape.tower: np.where(np.asarray(good)[:, None, None], values, 0)})
            about = writer.close()
        tower = TowerAbout({}, None, shape.tokens, shape.width, shape.dtype)
        write_about(folder, About("0", {shape.tower: tower}, {"train_vqa": about}))
        return Features(folder, [shape.tower])


def stream_of(source, shape: RowShape, **options) -> BatchStream:
    settings = {"batch_size": 3, "rows": range(3), "window": 3, "threads": 2, "read_ahead": 1, "max_bad_records": 999}
    mixture = Mixture([Source("vqa", source, 1.0)], seed=0)
    return batch_stream(mixture, WordCoder(), PER_IMAGE, shape, **{**settings, "max_pixels": MAX_PIXELS, **options})


def take(count: int, source, shape: RowShape, **options) -> list:
    stream = stream_of(source, shape, **options)
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


def without(made: list, *names: str) -> list:
    return [({key: array for key, array in batch.items() if key not in names}, state) for batch, state in made]


def test_rows_without_pixels_are_the_rows_with_them(tmp_path, monkeypatch):
    """Also where records have to be left out, for their reasons; whoever continues the other's state."""
    features = Uneven().store(tmp_path)
    source = features.attach({"vqa": Uneven()}, "train")["vqa"]
    seeing = RowShape(60, 6, 4, features.shapes)
    reading = dataclasses.replace(seeing, pixels=False)
    plain = take(30, Uneven(), RowShape(60, 6, 4))
    seen = take(30, source, seeing)
    skipped = dict(zip(SKIP_REASONS, seen[-1][1]["skipped"].sum(axis=0).tolist(), strict=True))
    assert skipped["undecodable"] >= 6
    assert skipped["too_large"] >= 2
    assert_same(without(seen, "understanding_tower_features"), plain)

    decoded = []
    monkeypatch.setattr(
        slots, "decode_into", lambda square, data, **how: (decoded.append(data), decode_into(square, data, **how))
    )
    read = take(30, source, reading)
    assert set(decoded) & set(BROKEN.values())
    assert set(decoded) <= {data for number in BROKEN for data in Uneven()[number]["images"]}
    assert_same(read, without(seen, "images"))
    assert_same(take(20, source, reading, state=seen[9][1], threads=1), read[10:])
    assert_same(take(20, source, seeing, state=read[9][1], threads=1), seen[10:])
    assert_same(take(12, source, reading, workers=2), read[:12])


def test_a_picture_without_features_is_left_out_also_when_it_can_be_decoded_now(tmp_path):
    source = Uneven().store(tmp_path).attach({"vqa": Uneven()}, "train")["vqa"]
    assert [number for number in range(len(source)) if source[number][UNDECODABLE]] == list(BROKEN)
    larger = {"max_pixels": 100}
    assert (
        take(30, Uneven(), RowShape(60, 6, 4), **larger)[-1][0]["skipped"][:, SKIP_REASONS.index("too_large")].sum()
        == 0
    )
    shape = RowShape(60, 6, 4, (SHAPES[0],))
    seen, read = (take(30, source, dataclasses.replace(shape, pixels=pixels), **larger) for pixels in (True, False))
    assert_same(read, without(seen, "images"))
    for batch, _ in read:
        assert batch["understanding_tower_features"][batch["role"] > 0].any(axis=(1, 2)).all()
    with pytest.raises(InvalidRecord, match="an image that could not be decoded when its features were computed"):
        record_sample(source[40], WordCoder(), PER_IMAGE, 4)


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
        ({"towers": 3}, "truncated, or not made by"),
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

"""WebDataset: keys, kinds, patterns, documents, and tars that are broken or hostile."""

from __future__ import annotations

import json
import tarfile

import pytest
from given import imported, pairs, picture, stored, turns, write_tar

from unihetero_jax.data.importers import webdataset
from unihetero_jax.data.importers.webdataset import WebDatasetImporter, expand_braces
from unihetero_jax.data.ingest import importer
from unihetero_jax.data.ingest.importer import Rejected
from unihetero_jax.errors import UsageError


def records(importer: WebDatasetImporter) -> list:
    return [made for unit in importer.units() for made in importer.records(json.loads(json.dumps(unit)))]


def of(tmp_path, members, **options) -> list:
    write_tar(tmp_path / "a.tar", members)
    return records(WebDatasetImporter((f"{tmp_path}/a.tar",), **options))


def only(tmp_path, members, **options):
    (made,) = of(tmp_path, members, **options)
    return made


JPEG = picture(1)


def test_a_pair_is_a_caption(tmp_path):
    made = only(tmp_path, [("dir/0001.jpg", JPEG), ("dir/0001.txt", "eine Katze: äß\n".encode())])
    assert made.key == "a/dir/0001"
    assert made.images == (JPEG,)
    assert made.task == "caption"
    (human, asked), (gpt, caption) = made.conversations
    assert (human, gpt, caption) == ("human", "gpt", "eine Katze: äß")
    assert asked.startswith("<image>\n")
    assert made.attributes == ""


def test_the_key_decides_how_a_caption_is_asked_for(tmp_path):
    made = of(tmp_path, pairs(range(60)), prompts=("One?", "Two?"))
    asked = [record.conversations[0].text for record in made]
    assert set(asked) == {"<image>\nOne?", "<image>\nTwo?"}
    assert asked == [
        record.conversations[0].text for record in of(tmp_path, pairs(range(60)), prompts=("One?", "Two?"))
    ]


@pytest.mark.parametrize("kind", ["jpg", "jpeg", "png", "webp", "JPG"])
def test_kinds_of_images(tmp_path, kind):
    assert only(tmp_path, [(f"1.{kind}", JPEG), ("1.txt", b"x")]).images == (JPEG,)


def test_captions_are_taken_from_txt_before_json_before_the_class(tmp_path):
    about = json.dumps({"caption": "of json", "alt": "other", "url": "u", "n": 3}).encode()
    image, label = ("1.jpg", JPEG), ("1.cls", b"1\n")
    both = [image, ("1.txt", b"of txt"), ("1.json", about), label]
    names = {"class_names": ("dog", "cat")}
    found = [
        only(tmp_path, both, **names),
        only(tmp_path, [image, ("1.json", about), label], **names),
        only(tmp_path, [image, ("1.json", about)], caption_key="alt"),
        only(tmp_path, [image, label], **names),
    ]
    assert [made.conversations[1].text for made in found] == ["of txt", "of json", "other", "cat"]
    kept = only(tmp_path, both, attributes=("url", "n", "absent"))
    assert json.loads(kept.attributes) == {"cls": 1, "n": 3, "url": "u"}


def test_the_key_ends_at_the_first_dot_of_the_base_name(tmp_path):
    members = [("v1.5/a.jpg", JPEG), ("v1.5/a.seg.png", picture(2)), ("v1.5/a.txt", b"one")]
    assert only(tmp_path, members).key == "a/v1.5/a"
    assert only(tmp_path, members).images == (JPEG,)


def test_other_members_are_left_alone(tmp_path):
    members = [
        ("1.jpg", JPEG),
        ("1.npy", b"\0" * 10),
        ("1.txt", b"x"),
        ("README", b"y"),
        ("._1.jpg", b"z"),
        (".x", b""),
    ]
    assert only(tmp_path, members).key == "a/1"


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("1.txt", b"x")], "missing_image"),
        ([("1.jpg", JPEG)], "missing_text"),
        ([("1.jpg", JPEG), ("1.txt", b" \n ")], "empty_text"),
        ([("1.jpg", JPEG), ("1.txt", b"\xff\xfe\xfa")], "invalid_utf8"),
        ([("1.jpg", JPEG), ("1.json", b"{")], "invalid_json"),
        ([("1.jpg", JPEG), ("1.json", b"[" * 100_000)], "invalid_json"),
        ([("1.jpg", JPEG), ("1.json", b"3")], "invalid_json"),
        ([("1.jpg", JPEG), ("1.json", b'{"caption": 3}')], "missing_text"),
        ([("1.jpg", JPEG), ("1.png", JPEG), ("1.txt", b"x")], "several_images"),
        ([("1.jpg", JPEG), ("1.jpg", JPEG), ("1.txt", b"x")], "repeated_member"),
        ([("1.jpg", JPEG), ("1.cls", b"x"), ("1.txt", b"x")], "invalid_class"),
    ],
)
def test_a_bad_sample_is_told_and_the_next_is_good(tmp_path, members, reason):
    bad, good = of(tmp_path, [*members, ("2.jpg", JPEG), ("2.txt", b"good")])
    assert (bad.key, bad.reason) == ("a/1", reason)
    assert good.conversations[1].text == "good"


def test_a_large_member_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(importer, "MAX_RECORD_MB", 0.005)
    monkeypatch.setattr(webdataset, "MOST_TEXT_BYTES", 500)
    large = [("1.jpg", b"\0" * 5001), ("1.txt", b"x"), ("3.jpg", JPEG), ("3.txt", b"x" * 501)]
    *bad, good = of(tmp_path, [*large, ("4.jpg", JPEG), ("4.png", b"x" * 4500), ("2.jpg", JPEG), ("2.txt", b"good")])
    assert [one.reason for one in bad] == ["member_too_large"] * 3
    assert good.key == "a/2"


def test_names_are_never_paths(tmp_path):
    (tmp_path / "in").mkdir()
    before = sorted(tmp_path.rglob("*"))
    members = [("../../evil.jpg", JPEG), ("../../evil.txt", b"x"), ("/etc/evil.jpg", JPEG), ("/etc/evil.txt", b"y")]
    write_tar(tmp_path / "in" / "a.tar", members)
    made = records(WebDatasetImporter((f"{tmp_path}/in/a.tar",)))
    assert [record.key for record in made] == ["a/../../evil", "a//etc/evil"]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "in" / "a.tar"])


def test_links_bring_nothing_in(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("1.jpg", "1.txt"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"{tmp_path}/secret.txt"
            tar.addfile(link)
    assert records(WebDatasetImporter((f"{tmp_path}/a.tar",))) == []


def test_a_truncated_tar_gives_what_is_whole_and_is_counted_once(tmp_path):
    whole = write_tar(tmp_path / "a.tar", pairs(range(10)))
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    write_tar(tmp_path / "b.tar", pairs(range(10, 20)))
    out = tmp_path / "data"
    manifest = imported(WebDatasetImporter((f"{tmp_path}/{{a,b}}.tar",)), out)
    assert manifest.rejected == {"broken_tar": 1}
    kept = [record["key"].decode() for record in stored(out, "train_caption")]
    first = [key for key in kept if key.startswith("a/")]
    assert first == [f"a/{n:05d}" for n in range(len(first))]
    assert 3 <= len(first) <= 5
    assert len(kept) - len(first) == 10


def test_what_is_no_tar_is_refused_at_once(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(UsageError, match=r"a\.tar is no tar: no tar header at byte 0"):
        WebDatasetImporter((f"{tmp_path}/a.tar",)).units()
    write_tar(tmp_path / "0.tar", pairs(range(2)))
    made = records(WebDatasetImporter((f"{tmp_path}/*.tar",)))
    assert [type(one) for one in made].count(Rejected) == 1
    assert len(made) == 3


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_large_tar_is_shared_out_and_gives_the_same_records(tmp_path, monkeypatch, form):
    name = "long" * 40 if form != tarfile.USTAR_FORMAT else ""
    write_tar(tmp_path / "a.tar", pairs(range(40), name), form)
    importer = WebDatasetImporter((f"{tmp_path}/a.tar",))
    assert importer.units() == [{"tar": f"{tmp_path}/a.tar"}]
    expected = records(importer)
    monkeypatch.setattr(webdataset, "UNIT_BYTES", 10_000)
    monkeypatch.setattr(webdataset, "_WHOLE_TAR_BYTES", 10_000)
    units = importer.units()
    assert len(units) > 5
    assert records(importer) == expected
    # One unit alone gives its own, whatever came before.
    backwards = [list(importer.records(unit)) for unit in reversed(units)]
    assert [made for own in reversed(backwards) for made in own] == expected
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: int(len(data) * 0.7)])
    made = records(importer)
    assert made[:-1] == expected[: len(made) - 1]
    assert made[-1].reason == "broken_tar"


def test_gzip_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "_WHOLE_TAR_BYTES", 10)
    write_tar(tmp_path / "a.tar.gz", pairs(range(4)), mode="w:gz")
    importer = WebDatasetImporter((f"{tmp_path}/*.gz",))
    assert len(importer.units()) == 1
    assert [record.key for record in records(importer)] == [f"a/{n:05d}" for n in range(4)]


def document(*parts) -> tuple[str, bytes]:
    return "1.json", json.dumps(parts).encode()


def test_a_document_is_one_turn_in_reading_order(tmp_path):
    images = [("1.0.jpg", picture(0)), ("1.1.png", picture(1)), ("1.2.webp", picture(2))]
    for parts in (
        ("Once", {"image": "1.1.png"}, "upon", {"image": "1.0.jpg"}, {"text": "a time"}),
        ("Once", "1.png", "upon", "1.0.jpg", "a time"),
        ("Once", {"image": "1.png"}, "upon", {"image": "0.jpg"}, "a time"),
    ):
        made = only(tmp_path, [*images, document(*parts)])
        assert made.task == "interleaved"
        assert [turn.speaker for turn in made.conversations] == ["gpt"]
        assert made.conversations[0].text == "Once\n<image>\nupon\n<image>\na time"
        assert made.images == (picture(1), picture(0))
    made = only(tmp_path, [("1.jpg", JPEG), document("jpg", "<image>", {"image": "jpg"}, {"image": "1.jpg"})])
    assert made.conversations[0].text == "jpg\n< image >\n<image>\n<image>"
    assert made.images == (JPEG, JPEG)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (["a", {"image": "2.jpg"}], "missing_image"),
        (["a", 3], "invalid_document"),
        (["a", {"image": 3}], "invalid_document"),
        ([], "empty_text"),
        ([" "], "empty_text"),
    ],
)
def test_a_bad_document(tmp_path, parts, reason):
    assert only(tmp_path, [("1.jpg", JPEG), document(*parts)]).reason == reason


def test_documents_have_a_split_of_their_own(tmp_path):
    members = [("1.jpg", JPEG), document("a", {"image": "jpg"}), ("2.jpg", JPEG), ("2.txt", b"b")]
    write_tar(tmp_path / "a.tar", members)
    manifest = imported(WebDatasetImporter((f"{tmp_path}/a.tar",)), tmp_path / "data")
    assert manifest.counts == {"train_caption": 1, "train_interleaved": 1}
    assert turns(stored(tmp_path / "data", "train_interleaved")[0]) == [("gpt", "a\n<image>")]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("{00000..00002}.tar", ["00000.tar", "00001.tar", "00002.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{a,b}/{1..2}.tar", ["a/1.tar", "a/2.tar", "b/1.tar", "b/2.tar"]),
    ],
)
def test_braces(pattern, expected):
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize("pattern", ["{0..x}.tar", "{a}.tar", "{0..3.tar", "{3..0}.tar", "{0..99999999}", "{a{b,c}}"])
def test_bad_braces_are_told(pattern):
    with pytest.raises(UsageError, match=r"expected|stands for"):
        expand_braces(pattern)


def test_patterns_and_missing_files(tmp_path):
    for name in ("b.tar", "a.tar"):
        write_tar(tmp_path / name, pairs(range(2)))
    importer = WebDatasetImporter((f"{tmp_path}/*.tar", f"{tmp_path}/b.tar"))
    assert [unit["tar"] for unit in importer.units()] == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    for tars, message in (
        ((f"{tmp_path}/{{a,c}}.tar",), r"cannot read .*c\.tar: No such file"),
        ((f"{tmp_path}/*.zip",), r"\*\.zip: no such file"),
    ):
        with pytest.raises(UsageError, match=message):
            WebDatasetImporter(tars).units()
    with pytest.raises(UsageError, match="no tars"):
        WebDatasetImporter(())
    with pytest.raises(UsageError, match="the prompt 'what is <image>'"):
        WebDatasetImporter(("a.tar",), prompts=("what is <image>",))

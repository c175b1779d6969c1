"""Apache Beam does the same work as the processes of one machine do."""

from __future__ import annotations

import pytest
from given import contents, pairs, picture, write_tar

from unihetero_jax.cli import main
from unihetero_jax.data.importers.webdataset import WebDatasetImporter
from unihetero_jax.data.ingest import beam
from unihetero_jax.data.ingest.settings import Settings, Steps
from unihetero_jax.data.ingest.write import Pool, import_dataset
from unihetero_jax.errors import UsageError

pytest.importorskip("apache_beam")


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    root = tmp_path_factory.mktemp("tars")
    for number in range(4):
        members = pairs(range(8 * number, 8 * number + 8))
        write_tar(root / f"{number}.tar", [*members, ("same.jpg", picture(0)), ("same.txt", b"the picture 0")])
    return WebDatasetImporter((f"{root}/{{0..3}}.tar",))


SETTINGS = Settings(steps=Steps(drop_duplicates=True), test_share=0.25, shard_mb=0.01, vocabulary_size=512)


def test_the_files_are_the_same(tars, tmp_path):
    import_dataset(tars, tmp_path / "here", SETTINGS, Pool(1))
    import_dataset(tars, tmp_path / "beam", SETTINGS, beam.Beam(["--direct_num_workers=2"]))
    assert contents(tmp_path / "beam") == contents(tmp_path / "here")


def test_it_goes_on_from_where_the_processes_were(tars, tmp_path, monkeypatch, capsys):
    class Stops(Pool):
        def __call__(self, task, jobs, *others):
            super().__call__(task, jobs[:2], *others)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_dataset(tars, tmp_path / "data", SETTINGS, Stops(1))
    import_dataset(tars, tmp_path / "data", SETTINGS, beam.Beam([]))
    assert "continuing: 2 of 4 pieces are complete" in capsys.readouterr().out
    import_dataset(tars, tmp_path / "here", SETTINGS, Pool(1))
    assert contents(tmp_path / "data") == contents(tmp_path / "here")


def test_its_options_follow_two_dashes(tars, tmp_path, capsys):
    line = ["data", "import", "webdataset", *tars.tars, f"--out={tmp_path}/data", "--beam", "--vocabulary_size=0", "--"]
    assert main([*line, "--runner=NoSuchRunner"]) == 2
    error = capsys.readouterr().err
    assert "NoSuchRunner" in error
    assert error.count("\n") == 1
    assert main([*line, "--runner=DirectRunner"]) == 0
    assert "36 records" in capsys.readouterr().out


def test_an_input_that_cannot_be_read_is_one_line(tmp_path):
    write_tar(tmp_path / "a.tar", pairs(range(2)))
    importer = WebDatasetImporter((f"{tmp_path}/a.tar",))

    class Removes(beam.Beam):
        def __call__(self, *arguments):
            (tmp_path / "a.tar").unlink()
            super().__call__(*arguments)

    with pytest.raises(UsageError, match=r"cannot read .*a\.tar: No such file"):
        import_dataset(importer, tmp_path / "data", SETTINGS, Removes([]))

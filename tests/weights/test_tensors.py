"""Weight files: what is whole is read, what is not gets one line, and nothing is unpickled."""

from __future__ import annotations

import json
import pickle

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from unihetero_jax.errors import UsageError
from unihetero_jax.weights.tensors import TensorFiles
from unihetero_jax.weights.writer import Tensor, write_folder

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.linspace(-3, 3, 10).astype(ml_dtypes.bfloat16).reshape(2, 5),
    "c.d": np.asarray([1, 2, 3], np.int64),
    "e": np.asarray(2.5, np.float16),
}


def write(folder, shard_bytes=1000):
    tensors = [Tensor(name, array.shape, array.dtype, lambda array=array: array) for name, array in ARRAYS.items()]
    write_folder(folder, tensors, {"config.json": "{}"}, shard_bytes=shard_bytes)
    return folder


def read_all(path) -> None:
    with TensorFiles(path) as files:
        for name in files.names:
            files.read(name)


def message(path) -> str:
    with pytest.raises(UsageError) as caught:
        read_all(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shard_bytes", [1000, 60])
def test_what_is_written_is_what_is_read(shard_bytes, tmp_path):
    folder = write(tmp_path / "x", shard_bytes)
    assert (folder / "model.safetensors").exists() == (shard_bytes == 1000)
    with TensorFiles(folder) as files:
        assert set(files.names) == set(ARRAYS)
        for name, array in ARRAYS.items():
            found = files.read(name)
            assert found.dtype == files.names[name].dtype == array.dtype
            assert files.names[name].shape == array.shape
            np.testing.assert_array_equal(found, array)
    for file in folder.glob("*.safetensors"):
        for name, array in safetensors.numpy.load_file(file).items():
            np.testing.assert_array_equal(array, ARRAYS[name])


def test_a_folder_that_failed_half_way_is_not_there(tmp_path):
    def fail():
        raise KeyboardInterrupt

    tensors = [Tensor("a", (3, 4), ARRAYS["a"].dtype, lambda: ARRAYS["a"]), Tensor("b", (1,), ARRAYS["a"].dtype, fail)]
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "x", tensors, {})
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_whole_file_gets_one_line(tmp_path):
    file = write(tmp_path / "x") / "model.safetensors"
    content = file.read_bytes()
    for bad in (content[:-3], content[:20], b"", b"\xff" * 100):
        file.write_bytes(bad)
        assert f"{file}: cannot be read, corrupt or truncated?" in message(tmp_path / "x")


def test_a_shard_that_is_missing_or_another_is_named(tmp_path):
    folder = write(tmp_path / "x", 60)
    shards = sorted(folder.glob("*.safetensors"))
    first = shards[0].read_bytes()
    shards[0].write_bytes(shards[1].read_bytes())
    assert "holds" in message(folder)
    shards[0].unlink()
    assert f"{shards[0]}: missing, named in model.safetensors.index.json" in message(folder)
    shards[0].write_bytes(first)
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": good["weight_map"] | {"z": shards[0].name}}))
    assert "has no tensor z, which the index says it holds" in message(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    assert "'../secret.safetensors' is no name of a file beside it" in message(folder)
    index.write_text("[]")
    assert "expected JSON with a weight_map" in message(folder)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    assert "no weights; expected model.safetensors" in message(tmp_path)
    assert "no such file or folder" in message(tmp_path / "none")
    (tmp_path / "x.txt").write_text("")
    assert "expected a file that ends in .safetensors" in message(tmp_path / "x.txt")


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".ckpt"])
@pytest.mark.parametrize("nested", [None, "model"])
def test_torch_files_are_read_without_their_code(suffix, nested, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {
        name: torch.from_numpy(array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array.copy())
        for name, array in ARRAYS.items()
    }
    tensors["b"] = tensors["b"].to(torch.bfloat16)
    file = tmp_path / f"w{suffix}"
    for old in (False, True):
        torch.save({nested: tensors} if nested else tensors, file, _use_new_zipfile_serialization=not old)
        with TensorFiles(tmp_path) as files:
            for name, array in ARRAYS.items():
                assert files.names[name].dtype == array.dtype
                np.testing.assert_array_equal(files.read(name), array)
    file.write_bytes(file.read_bytes()[:100])
    assert str(file) in message(file)
    file.write_bytes(b"PK\x03\x04 and then nothing")
    assert str(file) in message(file)


def test_a_pickle_that_runs_something_does_not_run(tmp_path):
    pytest.importorskip("torch")

    class Bomb:
        def __reduce__(self):
            return (print, ("boom",))

    import torch

    file = tmp_path / "x.pt"
    for save in (lambda: file.write_bytes(pickle.dumps(Bomb())), lambda: torch.save({"a": Bomb()}, file)):
        save()
        assert "holds more than tensors" in message(file)


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "x.bin").write_bytes(b"")
    assert "pip install unihetero_jax[torch]" in message(tmp_path)

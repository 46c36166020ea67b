"""Checkpoints come back as they were, and damaged or hostile ones are refused."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralift_cli.core.checkpoint import load_checkpoint, save_checkpoint
from spectralift_cli.core.errors import DataError, OutputExistsError
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.tensorfile import dump_tensors
from tests.inverters import make_checkpoint


def full_checkpoint() -> Any:
    return make_checkpoint(
        6,
        used=[True, True, False, True, True, True],
        scaling=Scaling(0.02, 0.53),
        auto_clip=(0.0, 1.0),
        dtype=np.dtype("int16"),
        wavelengths_nm=np.linspace(400, 900, 6),
        fwhm_nm=np.full(6, 9.5),
        bad_bands=np.arange(6) == 2,
        nodata=-99,
        scale=1e-4,
        offset=np.arange(6) / 8,
        band_names=tuple("é1", ) + tuple("bcdef")[1:],
    )  # fmt: skip


def test_round_trip(tmp_path: Path) -> None:
    checkpoint = full_checkpoint()
    path, again = tmp_path / "m.safetensors", tmp_path / "n.safetensors"
    save_checkpoint(checkpoint, path)
    found = load_checkpoint(path)
    save_checkpoint(found, again)
    assert again.read_bytes() == path.read_bytes()
    for name in ("model_name", "model_config", "train_config", "scaling", "auto_clip", "scores",
                 "provenance"):  # fmt: skip
        assert getattr(found, name) == getattr(checkpoint, name), name
    np.testing.assert_array_equal(found.srf.weights, checkpoint.srf.weights)
    np.testing.assert_array_equal(found.used_bands, checkpoint.used_bands)
    for name in ("shape", "dtype", "nodata", "scale", "band_names"):
        assert getattr(found.hsi, name) == getattr(checkpoint.hsi, name), name
    for name in ("wavelengths_nm", "fwhm_nm", "bad_bands", "offset"):
        np.testing.assert_array_equal(getattr(found.hsi, name), getattr(checkpoint.hsi, name))
    x = torch.rand(7, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.model()(x), checkpoint.model()(x))
    with pytest.raises(OutputExistsError):
        save_checkpoint(checkpoint, path)


def test_other_tools_read_it(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_checkpoint(full_checkpoint(), path)
    with safetensors.safe_open(path, "np") as file:
        assert list(file.metadata()) == ["spectralift"]
        assert json.loads(file.metadata()["spectralift"])["schema"] == "spectralift.checkpoint/1"
        assert file.get_tensor("hidden.0.weight").shape == (16, 3)


def edited(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> bytes:
    """The bytes of a checkpoint after a change to its document or tensors."""
    data = full_checkpoint().to_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    document = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["spectralift"])
    tensors = dict(full_checkpoint().weights)
    change(document, tensors)
    return dump_tensors(tensors, document)


def put(*keys: str, value: Any) -> bytes:
    def change(document: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
        target = document
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return edited(change)


def without(key: str) -> bytes:
    return edited(lambda document, _: document.pop(key))


def weights(name: str, tensor: torch.Tensor) -> bytes:
    return edited(lambda _, tensors: tensors.__setitem__(name, tensor))


def header(text: str, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text.encode()


def torch_zip() -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, buffer)
    return buffer.getvalue()


def plain_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", "x")
    return buffer.getvalue()


WHOLE = full_checkpoint().to_bytes()
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "five bytes": (b"12345", "truncated to 5 bytes"),
    "cut in the header": (WHOLE[:300], "truncated"),
    "cut in the tensors": (WHOLE[:-7], "damaged"),
    "longer than its tensors": (WHOLE + b"x", "damaged"),
    "torch.save": (torch_zip(), "ZIP archive, as torch.save writes it"),
    "zip": (plain_zip(), "ZIP archive"),
    "pickle": (pickle.dumps({"a": 1}), "Python pickle"),
    "text": (b"epoch,lr,loss\n1,2,3\n", "promises a header of"),
    "a header of 2**63 bytes": (header("{}", 2**63), "promises a header of 9,223,372"),
    "not JSON": (header("{nonsense"), "not JSON"),
    "deep JSON": (header('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), "not"),
    "nested JSON": (header('{"a":' + "[" * 200 + "]" * 200 + "}"), "levels"),
    "NaN in JSON": (header('{"a":NaN}'), "not JSON"),
    "infinite number": (header('{"a":1e999}'), "not JSON"),
    "half a character": (header('{"a":"\\ud800"}'), "not JSON"),
    "no metadata": (header("{}"), "not a checkpoint of spectralift"),
    "absurd tensor": (
        header('{"__metadata__":{"spectralift":"{}"},'
               '"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'),
        "damaged",
    ),
    "a state": (put("schema", value="spectralift.training-state/1"), "but not a checkpoint"),
    "newer": (put("schema", value="spectralift.checkpoint/2"), "format 2, this version reads up to 1"),
    "no SRF": (without("srf"), "lacks 'srf'"),
    "no model": (without("model"), "lacks 'model'"),
    "unknown model": (put("model", "name", value="x"), "'x' is not a model"),
    "model is a list": (put("model", value=[1]), "damaged"),
    "huge width": (put("model", "config", value={"hidden_size": 10**12}), "hidden-size"),
    "other width": (put("model", "config", value={"hidden_size": 4096}), "asks for"),
    "train key": (put("train", "epoch", value=3), "unknown key 'epoch'"),
    "train value": (put("train", "epochs", value=-3), "epochs"),
    "a million bands": (put("hsi", "shape", value=[4, 4, 10**6]), "1000000"),
    "shape of two": (put("hsi", "shape", value=[4, 4]), "damaged"),
    "object dtype": (put("hsi", "dtype", value="O"), "object"),
    "no dtype": (put("hsi", "dtype", value="nonsense"), "damaged"),
    "SRF of other width": (put("srf", "weights", value=[[1.0]] * 3), "SRF has 1 bands"),
    "ragged SRF": (put("srf", "weights", value=[[1.0], [0.5, 0.5]]), "damaged"),
    "scaling upside down": (put("scaling", "hi", value=-1), "cannot be scaled"),
    "no bands used": (put("used_bands", value=[False] * 6), "uses none"),
    "used as numbers": (put("used_bands", value=[1, 1, 0, 1, 1, 1]), "used_bands"),
    "clip upside down": (put("auto_clip", value=[1, 0]), "clip range"),
    "wrong shape": (weights("out.bias", torch.zeros(7)), r"out.bias have shape \(7,\)"),
    "further tensor": (weights("more", torch.zeros(7)), "more have shape"),
    "float64": (weights("out.bias", torch.zeros(5, dtype=torch.float64)), "float32"),
    "NaN": (weights("out.bias", torch.full((5,), torch.nan)), "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name: str, tmp_path: Path) -> None:
    data, message = HOSTILE[name]
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(DataError, match="is not a file"):
        load_checkpoint(tmp_path)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_damage_never_surprises(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Whatever bytes change, the file loads or is refused with an explanation."""
    damaged = bytearray(WHOLE)
    length = struct.unpack("<Q", WHOLE[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, length + 40))
        damaged[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(bytes(damaged))
    try:
        load_checkpoint(path)
    except DataError as error:
        assert error.message

"""Configs of `run`: what they mean, what is none, and the templates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralift_cli.core.config import SynthConfig, TrainConfig
from spectralift_cli.core.errors import DataError, OptionError, SpectraliftError
from spectralift_cli.core.runs.blocks import BLOCKS, block_keys
from spectralift_cli.core.runs.config import RunConfig, resolve_config
from spectralift_cli.core.runs.configtext import LIMIT_BYTES, parse_config, read_config
from spectralift_cli.core.runs.flatconfig import FlatConfig, flat_snapshot
from tests.test_run import EXAMPLES, FLAT, NATIVE


def resolve(values: object, *pairs: str) -> RunConfig:
    return resolve_config(parse_config(yaml.safe_dump(values).encode(), "c.yaml"), pairs, "c.yaml")


# --- configs

WRONG = [
    ({"epoch": 5}, (), "did you mean epochs?"),
    ({"Output_File_Type": "h5"}, (), "did you mean output_file_type?"),
    ({}, ("kernelsize=3",), "did you mean kernel_size?"),
    ({"epochs": "many"}, (), "epochs is 'many'"),
    ({"epochs": True}, (), "epochs is true"),
    ({"epochs": 2.5}, (), "epochs is 2.5"),
    ({"epochs": [1]}, (), "epochs is [1]"),
    ({"epochs": 0}, (), "epochs is 0"),
    ({"seed": 2**63}, (), "seed is 9223372036854775808"),
    ({"sigma": "wide"}, (), "sigma is 'wide'"),
    ({"mat_key": 5}, (), "mat_key is 5"),
    ({"synthetic": "maybe"}, (), "synthetic is 'maybe'"),
    ({"psf_type": "gausian"}, (), "gausian"),
    ({"output_file_type": "matlb"}, (), "matlab"),
    ({"synthetic": False}, (), "lr_hsi_file is not given"),
    ({"provide_psf": True}, (), "psf_file is not given"),
    ({"mat_file": None}, (), "mat_file is not given"),
    ({"synthetic": False, "lr_hsi_file": "a", "hr_msi_file": "b"}, (), "num_bands_msi"),
    ({"train": {"epochs": 5}}, (), "schema"),
    ({}, ("train.epoch=5",), "did you mean train.epochs?"),
    ({}, ("report.steps=5",), "unknown key 'report.steps'"),
]
WRONG_NATIVE = [
    ({"schema": "spectralift.run/2"}, (), "spectralift.run/1"),
    ({"trian": {}}, (), "did you mean train?"),
    ({"report": {"points": 99}}, (), "points is 99"),
    ({}, ("report.titel=x",), "did you mean report.title"),
    ({}, ("epochs=5",), "did you mean train.epochs?"),
    ({"train": {"init_rl": 1}}, (), "did you mean train.init_lr?"),
    ({"train": {"init_lr": 1, "init-lr": 1}}, (), "twice"),
    ({"train": 5}, (), "train is 5"),
    ({"train": {"lr_hsi": "x"}}, (), "train.lr_hsi has no part"),
    ({"synth": {}}, (), "names no cube"),
    ({"synth": {"cube": "c", "format": "doc"}}, (), "doc"),
    ({"synth": {"cube": "c", "sigma": None}}, (), "sigma is None"),
    ({"infer": {"format": "mat", "dtype": "float16"}}, (), "float16"),
    ({"infer": {"clip": "1,0"}}, (), "1,0"),
    ({"infer": {"hr_msi": "other.tif"}, "metrics": None}, (), "ground truth"),
    ({"metrics": {"mode": "best"}}, (), "best"),
    ({"metrics": {"mode": "paper", "modes": ["standard"]}}, (), "both mode and modes"),
    ({"metrics": {"modes": ["paper", "published"]}}, (), "once"),
]


@pytest.mark.parametrize(("change", "pairs", "told"), WRONG)
def test_wrong_flat_configs(change: dict[str, Any], pairs: tuple[str, ...], told: str) -> None:
    with pytest.raises(DataError) as error:
        resolve({**FLAT, **change}, *pairs)
    assert told in error.value.message + error.value.hint


@pytest.mark.parametrize(("change", "pairs", "told"), WRONG_NATIVE)
def test_wrong_native_configs(change: dict[str, Any], pairs: tuple[str, ...], told: str) -> None:
    with pytest.raises(DataError) as error:
        resolve({**NATIVE, **change}, *pairs)
    assert told in error.value.message + error.value.hint


def test_wrong_creation_option() -> None:
    with pytest.raises(OptionError, match="COMPRES"):
        resolve({**NATIVE, "infer": {"co": {"COMPRES": "GZIP"}}})


def test_values_as_yaml_has_them() -> None:
    """1e-4 is a text in YAML 1.1, and an unquoted true or YES is no text."""
    found = resolve_config(
        parse_config(
            b"schema: spectralift.run/1\nsynth: {cube: c, srf_wavelengths: true, snr-spatial: .inf}\n"
            b"train: {preset: paper, init_lr: 1e-4}\ninfer: {format: tif, co: {tiled: YES, BLOCKSIZE: 64}}",
            "c.yaml",
        )
    )
    assert found.synth is not None
    assert (found.synth[1].srf_wavelengths, found.synth[1].snr_spatial) == ("true", np.inf)
    assert found.train[1].init_lr == 1e-4
    assert found.infer[0].co == {"TILED": "YES", "BLOCKSIZE": "64"}


def test_flat_defaults() -> None:
    """Omitted training keys are preset paper's, omitted synthesis keys the template's."""
    found = resolve({"mat_file": "c.mat", "sigma": None, "epochs": ""})
    assert found.train[1] == TrainConfig(preset="paper")
    assert found.synth is not None
    assert found.synth[1] == SynthConfig(protocol="published")


BOMB = b"a: &a [x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (97 + i, 97 + i, b", ".join([b"*%c" % (96 + i)] * 9)) for i in range(1, 9)
)
NOT_CONFIGS = {
    "nothing": b"", "list": b"- 1", "text": b"epochs", "number": b"5", "aliases": BOMB,
    "self": b"a: &a [*a]", "twice": b"epochs: 1\nepochs: 2", "twice, quoted": b"a: 1\n'a': 2",
    "tabs": b"a:\n\tb: 1", "open": b"a: [1", "two": b"a: 1\n---\nb: 1", "number key": b"1: 2",
    "list key": b"? [a]\n: 1", "tag": b"a: !!python/object/apply:os.system [id]",
    "binary": b"a: !!binary eA==", "utf-16": "a: 1".encode("utf-16"), "latin": b"a: \xe9",
    "control": b"a: \x07", "nul": b'a: "\\0"', "surrogate": b'a: "\\ud800"',
    "digits": b"a: " + b"9" * 5000, "hex": b"a: 0x" + b"f" * 5000, "wide": b'a: "\\Uffffffff"',
    "deep": b"[" * 100_000, "deep map": b"{a: " * 30_000, "large": b"#" * (LIMIT_BYTES + 1),
    "image": bytes(range(256)),
}  # fmt: skip


@pytest.mark.parametrize("text", NOT_CONFIGS.values(), ids=NOT_CONFIGS.keys())
def test_what_is_no_config(text: bytes) -> None:
    with pytest.raises(DataError):
        parse_config(text, "c.yaml", as_json=False)


@pytest.mark.parametrize(
    "text", [b"{", b'{"a": 1, "a": 2}', b"[1]", b"[" * 100_000, b'{"a": "\\ud800"}', b'{"a": 1,}']
)
def test_what_is_no_json_config(text: bytes) -> None:
    with pytest.raises(DataError):
        parse_config(text, "c.json", as_json=True)


WORDS = st.sampled_from(
    [*FlatConfig.__dataclass_fields__, *BLOCKS, "schema", "spectralift.run/1", "cube", "epochs",
     "a.b", "train.epochs", ": ", "\n", "\n  ", "- ", "[", "]", "{", "}", ",", '"', "'", "&a ", "*a",
     "!!", "1e-4", "true", "null", ".nan", "-1", "0x", "5", "|", ">", "#", "%", "<<", "=", "?"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.lists(WORDS, max_size=20).map("".join).map(str.encode), st.binary(max_size=60)))
def test_any_text_is_a_config_or_a_data_error(data: bytes) -> None:
    try:
        resolve_config(parse_config(data, "c.yaml"), (), "c.yaml")
    except SpectraliftError as error:
        assert error.hint


def test_config_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(DataError, match="cannot be read"):
            read_config(path)
    with (tmp_path / "c.yaml").open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(DataError, match="more than"):
        read_config(tmp_path / "c.yaml")


# --- templates


def test_flat_templates_hold_every_key_with_its_default() -> None:
    from_yaml, from_json = (read_config(EXAMPLES / f"config.{e}") for e in ("yaml", "json"))
    assert set(from_yaml) == set(from_json) == set(FlatConfig.__dataclass_fields__)
    of_yaml, of_json = resolve_config(from_yaml), resolve_config(from_json)
    assert of_yaml == of_json
    assert of_yaml.snapshot == flat_snapshot(FlatConfig(mat_file=Path("ip.mat"), mat_key="cube"))


def test_native_template_holds_every_key_with_its_default() -> None:
    text = (EXAMPLES / "run.yaml").read_text()
    blocks = dict(re.findall(r"^(\w+):\n((?:  .*\n)+)", text, re.MULTILINE))
    for block in BLOCKS:
        stand = re.findall(r"^  (?:# )?(\w+): .*?  ?# ", blocks[block], re.MULTILINE)
        assert sorted(stand) == sorted(block_keys(block)), block
    template = resolve_config(read_config(EXAMPLES / "run.yaml"))
    bare = {"schema": "spectralift.run/1", "synth": {"cube": "ip.h5"}}
    assert template.snapshot == resolve(bare).snapshot


def test_every_template_key_is_explained() -> None:
    lines = (EXAMPLES / "config.yaml").read_text().splitlines()
    keys = [line for line in lines if re.match(r"\w+:", line)]
    assert len(keys) == len(FlatConfig.__dataclass_fields__)
    assert all(re.search(r" # \S+ ", line) for line in keys)

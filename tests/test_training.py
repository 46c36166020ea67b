"""The network, its schedules and its training, against independent implementations."""

from __future__ import annotations

import hashlib
import math
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.cube import Cube
from spectralift_cli.core.devices import Workers, resolve_device
from spectralift_cli.core.errors import DataError, OptionError, SpectraliftWarning
from spectralift_cli.core.fitstate import discard_state
from spectralift_cli.core.fitting import Fitted, fit
from spectralift_cli.core.formats import open_cube, write_cube
from spectralift_cli.core.lrpixels import load_pairs
from spectralift_cli.core.models.base import build_model
from spectralift_cli.core.models.paper import build_paper
from spectralift_cli.core.operators.scaling import Scaling
from spectralift_cli.core.schedules import learning_rate
from spectralift_cli.core.sensors.response import Srf
from spectralift_cli.core.source import Source
from spectralift_cli.core.training import train
from tests.inverters import forward, random_weights


def pairs(pixels: int = 1100, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mixtures of three smooth spectra, (N, 3) and (N, 12), in [0, 1]."""
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.ones(3), pixels)
    spectra = 0.5 + 0.5 * np.sin(np.linspace(0, 3, 12) * np.array([[1.0], [2.0], [3.0]]))
    hsi = (shares @ spectra).astype(np.float32)
    return hsi.reshape(pixels, 3, 4).mean(2), hsi


def digest(fitted: Fitted) -> str:
    parts = [tensor.numpy().tobytes() for tensor in fitted.model.state_dict().values()]
    parts.append(fitted.history.loss.tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_parameter_count_is_the_published_one() -> None:
    model = build_paper(4, 191)
    assert model.parameter_count == 33_535
    assert model.flops_per_pixel == 2 * (4 * 64 + 5 * 64 * 64 + 64 * 191) + 6 * 64 + 191
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_network_is_the_formula(precision: str) -> None:
    weights = random_weights(4, 191)
    x = np.random.default_rng(1).random((50, 4), dtype=np.float32)
    expected = forward(weights, x)
    model = build_paper(4, 191).with_weights(weights)
    span = np.ptp(expected)
    if precision == "fp32":
        np.testing.assert_allclose(model(torch.tensor(x)), expected, atol=2e-6 * span)
    kernel = model.kernel(50, precision)
    tolerance = 2e-6 if precision == "fp32" else 0.02
    found = kernel(torch.tensor(x))[:, :191]  # the rest makes the product fast
    np.testing.assert_allclose(found, expected, atol=tolerance * span)


def test_weights_start_glorot_uniform() -> None:
    weights = build_paper(4, 191).initial_weights(torch.Generator().manual_seed(0))
    assert len(weights) == 14
    for name, tensor in weights.items():
        if name.endswith("bias"):
            assert not tensor.any()
            continue
        n_out, n_in = tensor.shape
        limit = math.sqrt(6 / (n_in + n_out))
        assert tensor.abs().max() <= limit
        assert tensor.abs().max() > 0.98 * limit
        assert tensor.std() == pytest.approx(limit / math.sqrt(3), rel=0.1)
        assert abs(float(tensor.mean())) < 0.1 * limit


def test_one_cycle_equals_the_formula() -> None:
    config = TrainConfig(preset="paper", epochs=2500)
    found = [learning_rate(epoch, config) for epoch in range(1, 2501)]
    expected = [1e-3 + 9e-3 * e / 750 for e in range(1, 751)]
    expected += [1e-2 + (1e-6 - 1e-2) * e / 1750 for e in range(1, 1751)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[749] == 1e-2
    assert found[-1] == 1e-6
    assert learning_rate(1, TrainConfig(preset="paper", epochs=1)) == 1e-6


def test_cosine_restart_equals_the_formula() -> None:
    config = TrainConfig(preset="paper", lr_schedule="cosine_restart", epochs=101, num_restarts=3)
    position = 0  # epoch modulo 101 // 3
    for epoch in range(1, 102):
        position = 0 if position == 32 else position + 1
        expected = 1e-6 + (1e-2 - 1e-6) * math.cos(math.pi * position / 33 / 2) ** 2
        assert learning_rate(epoch, config) == pytest.approx(expected, rel=1e-9)


def test_flat_is_flat_and_restarts_must_fit() -> None:
    config = TrainConfig(preset="paper", lr_schedule="flat", epochs=5, init_lr=0.125)
    assert {learning_rate(epoch, config) for epoch in range(1, 6)} == {0.125}
    with pytest.raises(OptionError, match="5 restarts do not fit into 4 epochs"):
        fit(
            *pairs(4),
            TrainConfig(preset="paper", lr_schedule="cosine_restart", epochs=4, num_restarts=5),
        )


@pytest.mark.parametrize("batch", [None, 300])
def test_fit_is_adam_as_keras_computes_it(batch: int | None) -> None:
    """PyTorch's Adam with epsilon moved inside the bias correction is Keras's."""
    x, y = pairs()
    config = TrainConfig(
        preset="paper", epochs=12, hidden_size=8, training_batch_size=batch, seed=5
    )
    fitted = fit(x, y, config)
    generator = torch.Generator().manual_seed(5)
    model = build_paper(3, 12, hidden_size=8)
    model.with_weights(model.initial_weights(generator)).requires_grad_(True)
    optimiser = torch.optim.Adam(model.parameters())
    tensors, step = (torch.tensor(x), torch.tensor(y)), 0
    for epoch in range(1, 13):
        order = torch.arange(1100) if batch is None else torch.randperm(1100, generator=generator)
        losses = []
        for index in order.split(batch or 1100):
            step += 1
            optimiser.param_groups[0].update(
                lr=learning_rate(epoch, config), eps=1e-7 / math.sqrt(1 - 0.999**step)
            )
            optimiser.zero_grad()
            loss = torch.nn.functional.l1_loss(model(tensors[0][index]), tensors[1][index])
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()) * len(index) / 1100)
        assert fitted.history.loss[epoch - 1] == pytest.approx(sum(losses), rel=1e-4)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(
            fitted.model.state_dict()[name], tensor, atol=2e-4, rtol=0, msg=name
        )


def test_fit_is_deterministic_and_leaves_the_process_alone() -> None:
    x, y = pairs()
    config = TrainConfig(preset="paper", epochs=20, hidden_size=16, training_batch_size=1050)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    digests = {digest(fit(x, y, config, threads=n)) for n in (1, 2, 3)}
    assert len(digests) == 1
    shifted = np.empty(3 * 1100 + 1, np.float32)[1:].reshape(
        1100, 3
    )  # memory that begins elsewhere
    shifted[...] = x
    assert digest(fit(shifted, y, config)) in digests
    assert digest(fit(x, y, replace(config, seed=1))) not in digests
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_fit_learns_and_writes_its_history() -> None:
    done: list[tuple[int, int]] = []
    config = TrainConfig(preset="paper", epochs=150, hidden_size=16)
    fitted = fit(*pairs(200), config, progress=lambda *a: done.append(a))
    assert fitted.history.loss[-1] < 0.02 < 0.2 < fitted.history.loss[0]
    lines = fitted.history.to_csv().splitlines()
    assert lines[0] == "epoch,lr,loss"
    assert lines[150].startswith("150,1e-06,0.0")
    assert len(lines) == 151
    assert done[-1] == (150, 150)


def test_diverging_training_names_epoch_and_rate() -> None:
    x, y = pairs(10)
    y[3, 4] = np.inf
    with pytest.raises(DataError, match=r"not finite in epoch 1 at a learning rate of 0\.004"):
        fit(x, y, TrainConfig(preset="paper", epochs=10))
    with pytest.raises(DataError, match="3 MSI and 2 HSI"):
        fit(x[:3], y[:2], TrainConfig(preset="paper"))
    with pytest.raises(DataError, match="1 MSI and 1 HSI"):
        fit(x[:1], y[:1], TrainConfig(preset="paper"))


_KILLED = """
import sys
from pathlib import Path
from spectralift_cli.core.config import TrainConfig
from spectralift_cli.core.fitting import fit
from tests.test_training import RESUMED, pairs
fit(*pairs(), RESUMED, state_path=Path(sys.argv[1]), save_every_s=0)
"""
RESUMED = TrainConfig(preset="paper", epochs=250, hidden_size=8, training_batch_size=600)


def test_killed_training_continues_to_the_same_bytes(tmp_path: Path) -> None:
    state = tmp_path / "m.safetensors.state"
    root = Path(__file__).parent.parent
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(state)], cwd=root)
    deadline = time.monotonic() + 60
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed: list[int] = []
    fitted = fit(
        *pairs(), RESUMED, state_path=state, resume=True, progress=lambda n, _: resumed.append(n)
    )
    assert 1 < resumed[0] <= 250  # it did go on from where it was
    assert digest(fitted) == digest(fit(*pairs(), RESUMED))
    # the state of a finished training is kept until the result is safe, and gives the same again
    assert digest(fit(*pairs(), RESUMED, state_path=state, resume=True)) == digest(fitted)
    discard_state(state)
    assert list(tmp_path.iterdir()) == []


def test_resume_refuses_other_trainings_and_damage(tmp_path: Path) -> None:
    state, config = tmp_path / "state", TrainConfig(preset="paper", epochs=3, hidden_size=4)
    x, y = pairs(8)
    fit(x, y, config, state_path=state, resume=True)  # nothing to resume: starts afresh
    for other, what in (
        (replace(config, max_lr=0.5), "max-lr is 0.01 there and 0.5 here"),
        (replace(config, epochs=4), "epochs is 3 there and 4 here"),
    ):
        with pytest.raises(DataError, match=what):
            fit(x, y, other, state_path=state, resume=True)
    with pytest.raises(DataError, match="data is"):
        fit(x, y + 1, config, state_path=state, resume=True)
    fit(x, y, replace(config, epochs=4), state_path=state)  # without resume it starts afresh
    whole = state.read_bytes()
    state.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="its numbers are not those that were written"):
        fit(x, y, replace(config, epochs=4), state_path=state, resume=True)
    state.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="damaged"):
        fit(x, y, replace(config, epochs=4), state_path=state, resume=True)


def write_lr_hsi(folder: Path, values: np.ndarray, **fields: Any) -> Path:
    return write_cube(folder / "lr.npy", Cube.of(values, **fields), overwrite=True)[0]


def even_srf(bands: int = 12) -> Srf:
    weights = np.zeros((3, bands))
    for row in range(3):
        weights[row, row * bands // 3 : (row + 1) * bands // 3] = 3 / bands
    return Srf(weights, ("a", "b", "c"))


def test_pairs_leave_out_holes_and_bad_bands(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    values = generator.integers(1000, 3000, (5, 4, 12)).astype(np.int16)
    values[:, :, 11] = -99  # a band of holes
    values[1, 2, 7] = -99  # a pixel with a hole
    bad = np.zeros(12, bool)
    bad[0] = True
    path = write_lr_hsi(tmp_path, values, nodata=-99, scale=1e-3, bad_bands=bad)
    with open_cube(path) as reader, pytest.warns(SpectraliftWarning, match="75% of MSI band"):
        data = load_pairs(reader, even_srf())
    used = [b for b in range(12) if b not in (0, 11)]
    units = np.delete(values.reshape(20, 12), 6, axis=0)[:, used] * 1e-3
    np.testing.assert_array_equal(np.flatnonzero(data.used_bands), used)
    lo, hi = np.percentile(units, [1, 99])
    assert (data.scaling.lo, data.scaling.hi) == pytest.approx((lo, hi), rel=1e-6)
    scaled = (units - lo) / (hi - lo)
    np.testing.assert_allclose(data.lr_hsi, scaled, atol=1e-6)
    np.testing.assert_allclose(data.lr_msi[:, 0], scaled[:, :3].mean(1), atol=1e-6)
    np.testing.assert_allclose(data.lr_msi[:, 1], scaled[:, 3:7].mean(1), atol=1e-6)
    assert data.pixels == 20


def test_train_makes_a_checkpoint(tmp_path: Path) -> None:
    hsi = pairs(30)[1].reshape(5, 6, 12)
    bad = np.zeros(12, bool)
    bad[4] = True
    path = write_lr_hsi(tmp_path, hsi, wavelengths_nm=np.linspace(400, 900, 12), bad_bands=bad)
    announced: list[str] = []
    with open_cube(path) as reader, warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectraliftWarning)
        trained = train(
            Source(reader, even_srf()),
            TrainConfig(preset="paper", epochs=3),
            announce=lambda plan: announced.append(str(plan)),
        )
    checkpoint = trained.checkpoint
    assert announced == [
        "model paper: 3 -> 11 of 12 bands, 21,771 parameters, 30 LR pixels, 3 epochs of 1 step"
    ]
    assert checkpoint.scaling == Scaling()  # floats inside [0, 1] are scaled already
    assert checkpoint.auto_clip == (0, 1)
    assert checkpoint.used_bands.tolist() == (~bad).tolist()
    assert checkpoint.scores["lr_pixels"] == 30
    assert checkpoint.provenance is not None
    assert checkpoint.provenance["steps"][-1]["options"]["epochs"] == 3
    np.testing.assert_array_equal(checkpoint.hsi.wavelengths_nm, np.linspace(400, 900, 12))


def test_train_refuses_what_cannot_be_fitted(tmp_path: Path) -> None:
    values = np.full((2, 2, 12), np.nan, np.float32)
    values[0, 0] = 0.5
    cases = [
        (values, even_srf(), "1 of 4 LR pixels have values in all 12 used bands"),
        (np.full_like(values, np.nan), even_srf(), "0 of 4 LR pixels .* 0 used bands"),
        (np.full_like(values, 7), even_srf(), "cannot be scaled"),
        (values, even_srf(9), "has 12 bands but the SRF has weights for 9"),
    ]
    for array, srf, message in cases:
        with (
            open_cube(write_lr_hsi(tmp_path, array)) as reader,
            pytest.raises(DataError, match=message),
        ):
            load_pairs(reader, srf)
    bad = np.arange(12) < 4
    path = write_lr_hsi(tmp_path, np.random.default_rng(0).random((2, 2, 12)), bad_bands=bad)
    with open_cube(path) as reader, pytest.raises(DataError, match="0% of MSI band a's"):
        load_pairs(reader, even_srf())


def test_models_and_devices_are_checked() -> None:
    with pytest.raises(DataError, match="'gone' is not a model"):
        build_model("gone", 3, 4, {})
    with pytest.raises(DataError, match="does not take"):
        build_model("paper", 3, 4, {"depth": 5})
    for hidden in (0, 10**9, True, "64"):
        with pytest.raises(DataError, match="hidden-size"):
            build_model("paper", 3, 4, {"hidden_size": hidden})
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(DataError, match="cuda:4000 is not there"):
        resolve_device("cuda:4000")
    for name in ("gpu", "cuda:", "cpu:1", ""):
        with pytest.raises(OptionError, match="not a device"):
            resolve_device(name)


def test_workers_share_pieces_and_pass_errors_on() -> None:
    threads = torch.get_num_threads()
    seen: list[int] = []
    with Workers(3) as workers:
        workers.run(lambda _, piece: seen.append(piece), range(50))
        assert sorted(seen) == list(range(50))

        def fail(_: int, piece: int) -> None:
            if piece == 5:
                raise DataError("piece 5", "mend it")

        with pytest.raises(DataError, match="piece 5"):
            workers.run(fail, range(50))
    assert torch.get_num_threads() == threads


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
@pytest.mark.parametrize("batch", [None, 300])
def test_fit_on_cuda_agrees_with_the_processor(batch: int | None) -> None:
    x, y = pairs()
    config = TrainConfig(preset="paper", epochs=12, hidden_size=8, training_batch_size=batch)
    here = fit(x, y, config)
    there = fit(x, y, config, device=resolve_device("cuda"))
    again = fit(x, y, config, device=resolve_device("cuda"))
    assert digest(there) == digest(again)
    np.testing.assert_allclose(there.history.loss, here.history.loss, rtol=1e-3)
    for name, tensor in here.model.state_dict().items():
        torch.testing.assert_close(there.model.state_dict()[name], tensor, atol=1e-3, rtol=0)

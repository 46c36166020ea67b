"""Every option and its default, once: frozen dataclasses that commands, configs and files share.

Each field carries an `Option` with its help, unit and bounds (`optionfields`). The command line makes
its options from them, `run` validates config files against them, and checkpoints and scenes carry
them. This module imports only the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spectralift_cli.core.errors import DataError, OptionError
from spectralift_cli.core.operators import PSFS
from spectralift_cli.core.optionfields import canonical, check, option, options_of, to_json

PROTOCOLS = ("physical", "published")
PRESETS = ("auto", "paper")
EFFORTS = ("fast", "default", "best")
# what preset auto may be told to use; the table of all models is `core.models.MODELS`
AUTO_MODELS = ("linear", "residual-mlp", "kernel", "prior-mlp", "physics", "ensemble", "paper")
# those of them whose fit has no effort to choose
EFFORTLESS_MODELS = ("linear", "kernel", "paper")
SCHEDULES = ("one_cycle", "cosine_restart", "flat")
# what only preset paper uses
PAPER_OPTIONS = (
    "lr_schedule", "init_lr", "max_lr", "final_lr", "min_lr", "num_restarts", "epochs",
    "hidden_size", "training_batch_size",
)  # fmt: skip
_PRESET_OPTIONS = {"auto": ("model", "effort"), "paper": PAPER_OPTIONS}
# the learning rates that each schedule uses
SCHEDULE_OPTIONS = {
    "one_cycle": ("init_lr", "max_lr", "final_lr"),
    "cosine_restart": ("max_lr", "min_lr", "num_restarts"),
    "flat": ("init_lr",),
}


@dataclass(frozen=True)
class SynthConfig:
    """How a cube is degraded into an LR-HSI and an HR-MSI (reference: HyperBench 0.1.0)."""

    protocol: str = option(
        "physical",
        "physical: reflected borders, exact block means, true wavelengths; published: HyperBench's",
        choices=PROTOCOLS,
    )
    psf_type: str = option("gaussian", "shape of the point spread function", choices=tuple(PSFS))
    sigma: float = option(3.4, "width of the PSF", unit="HR pixels", low=1e-3, high=1e3)
    kernel_size: int = option(
        7, "half width n of the PSF kernel, which is 2n+1 wide", unit="HR pixels", low=0, high=512
    )
    downsample_ratio: int = option(4, "HR pixels to one LR pixel along a side", low=1, high=1024)
    snr_spatial: float = option(
        35.0, "SNR of the LR-HSI, inf for none", unit="dB", low=-50, high=300, allow_inf=True
    )
    snr_spectral: float = option(
        40.0, "SNR of the HR-MSI, inf for none", unit="dB", low=-50, high=300, allow_inf=True
    )
    num_msi_bands: int = option(
        4,
        "bands of the MSI: 1 pan, 3 and 4 IKONOS, 8 WorldView-2, 16 WorldView-3",
        choices=(1, 3, 4, 8, 16),
    )
    fwhm_factor: float = option(
        4.2, "an SRF's Gaussian std is (high edge - low edge) / factor", low=1e-3, high=1e3
    )
    seed: int = option(42, "seed of the noise", low=0, high=2**32 - 1)
    boundary: str | None = option(
        None, "borders of the blur (by protocol: reflect, zero)", choices=("reflect", "zero")
    )
    srf_wavelengths: str | None = option(
        None,
        "wavelengths the SRF is laid over (by protocol: true, invented)",
        choices=("true", "invented"),
    )
    drop_uncovered_bands: bool = option(
        False, "drop MSI bands that the cube's wavelengths cover less than half"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocol", canonical(self.protocol, PROTOCOLS))
        check(self)

    @property
    def resolved_boundary(self) -> str:
        """The boundary that applies: the one given, else the protocol's."""
        return self.boundary or ("zero" if self.protocol == "published" else "reflect")

    @property
    def resolved_srf_wavelengths(self) -> str:
        """Which wavelengths the SRF is laid over: those given, else the protocol's."""
        return self.srf_wavelengths or ("invented" if self.protocol == "published" else "true")


@dataclass(frozen=True)
class TrainConfig:
    """How the spectral inverter is fitted.

    Preset `auto` takes model, effort and seed; the options after these are those of preset `paper`,
    with the published values as defaults.

    Raises:
        OptionError: an option of the other preset has a value that is not its default, or the
            uncertainty of a model is asked for that cannot be calibrated.
    """

    preset: str = option(
        "auto", "auto: fits several models and weighs them on held-out LR pixels; paper: the "
        "published network and training (also called published)", choices=PRESETS,
    )  # fmt: skip
    model: str | None = option(
        None, "the one model that auto fits (default: it chooses)", choices=AUTO_MODELS
    )
    effort: str = option("default", "time that auto trades for accuracy", choices=EFFORTS)
    lr_schedule: str = option("one_cycle", "learning rate schedule", choices=SCHEDULES)
    init_lr: float = option(1e-3, "learning rate at the start", low=0, high=10)
    max_lr: float = option(1e-2, "largest learning rate", low=0, high=10)
    final_lr: float = option(1e-6, "learning rate at the end of one_cycle", low=0, high=10)
    min_lr: float = option(1e-6, "lowest learning rate of cosine_restart", low=0, high=10)
    num_restarts: int = option(2, "periods of cosine_restart", low=1, high=100_000)
    epochs: int = option(2500, "passes over the LR pixels", low=1, high=10_000_000)
    hidden_size: int = option(64, "width of the hidden layers", low=1, high=8192)
    training_batch_size: int | None = option(
        None, "LR pixels a step (default: all of them)", low=1, high=2**31 - 1
    )
    seed: int = option(42, "seed of the weights and the order of pixels", low=0, high=2**63 - 1)
    max_pixels: int | None = option(
        None, "LR pixels to train on, drawn by the seed where there are more (default: all of them)",
        low=2, high=2**31 - 1, later=True,
    )  # fmt: skip
    uncertainty: bool = option(
        False, "calibrate what infer --uncertainty writes, by some more fits to parts of the LR "
        "pixels: several times the time",
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "preset", canonical(self.preset, PRESETS))
        if self.model is not None:
            object.__setattr__(self, "model", canonical(self.model, AUTO_MODELS))
        check(self)
        changed = {
            name: getattr(self, name)
            for name, (each, _) in options_of(TrainConfig).items()
            if getattr(self, name) != each.default
        }
        self._check_preset({**changed, "preset": self.preset})
        if self.uncertainty and self.model == "physics":
            raise OptionError(
                "--uncertainty does not apply to the model physics: its calibration fits models to "
                "LR pixels alone",
                "leave one of them out, or choose another --model",
            )

    @property
    def published(self) -> TrainConfig | None:
        """The settings of the published training, where that is what this asks for, else None.

        Preset auto's model `paper` is fitted by preset paper's defaults.
        """
        if self.preset == "auto" and self.model == "paper":
            return TrainConfig(preset="paper", seed=self.seed)
        return self if self.preset == "paper" else None

    @property
    def unused(self) -> tuple[str, ...]:
        """The options that belong to another preset."""
        return tuple(
            n for preset, own in _PRESET_OPTIONS.items() if preset != self.preset for n in own
        )

    def used_json(self) -> dict[str, Any]:
        """Return the options that determine the result, as `to_json` does."""
        return {name: value for name, value in to_json(self).items() if name not in self.unused}

    @staticmethod
    def _check_preset(given: Mapping[str, Any]) -> None:
        preset = canonical(given.get("preset", TrainConfig.preset), PRESETS)
        for other, names in _PRESET_OPTIONS.items():
            unused = [name for name in names if name in given]
            if other != preset and unused:
                raise OptionError(
                    f"--{unused[0].replace('_', '-')} does not apply to the preset {preset}",
                    f"it belongs to --preset {other}",
                )

    @staticmethod
    def check_given(given: Mapping[str, Any]) -> None:
        """Refuse options that would change nothing.

        Raises:
            OptionError: an option of another preset, an effort for a model that has none to choose,
                or a learning rate that the chosen schedule does not use.
        """
        TrainConfig._check_preset(given)
        model = canonical(given.get("model") or "", AUTO_MODELS)
        if model in EFFORTLESS_MODELS and "effort" in given:
            raise OptionError(
                f"--effort does not apply to the model {model}",
                "it belongs to residual-mlp, prior-mlp, physics and ensemble, or leave --model out",
            )
        schedule = given.get("lr_schedule", TrainConfig.lr_schedule)
        rates = {name for names in SCHEDULE_OPTIONS.values() for name in names}
        unused = sorted((rates & given.keys()) - set(SCHEDULE_OPTIONS[schedule]))
        if unused:
            raise OptionError(
                f"--{unused[0].replace('_', '-')} does not apply to the schedule {schedule}",
                f"it uses {', '.join(SCHEDULE_OPTIONS[schedule])}",
            )


@dataclass(frozen=True)
class InferConfig:
    """What determines the values of a sharp cube, besides the model and the image."""

    clip: str = option(
        "auto", "auto, none, or LO,HI in units; auto: [0, 1] where the data are already scaled, "
        "else the output type's range",
    )  # fmt: skip
    precision: str = option("fp32", "arithmetic of the network", choices=("fp32", "bf16"))
    drop_bad_bands: bool = option(
        False, "leave out the bands that training left out, instead of filling them with nodata"
    )

    def __post_init__(self) -> None:
        check(self)
        self.clip_range  # noqa: B018  # raises for a text that is no range

    @property
    def clip_range(self) -> tuple[float, float] | None:
        """The explicit range of `clip` in units, or None for auto and none."""
        return _clip_range(self.clip)


@dataclass(frozen=True)
class RefineConfig:
    """What determines how far a cube is made to agree with both images."""

    strength: float = option(
        32.0,
        "variance of single pixels' errors over that of LR pixels', raised up to 8 times until "
        "the LR-HSI is met",
        low=1e-3,
        high=1e6,
    )
    components: int | None = option(
        None, "of the LR-HSI's signal (default: those beyond its noise, up to 20)", low=1, high=200
    )
    trust_psf: bool = option(False, "take the given PSF as it is, also where the images disagree")
    ungated: bool = option(False, "apply the refinement whatever held-out LR pixels say")
    clip: str = option(
        "auto", "auto, none, or LO,HI in units; auto: [0, 1] where a floating cube lies within it, "
        "else the output type's range",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
        self.clip_range  # noqa: B018  # raises for a text that is no range

    @property
    def clip_range(self) -> tuple[float, float] | None:
        """The explicit range of `clip` in units, or None for auto and none."""
        return _clip_range(self.clip)


@dataclass(frozen=True)
class MetricsConfig:
    """Which conventions the scores follow."""

    mode: str = option(
        "standard",
        "standard: float, stated data range; published: sewar 0.4.6's formulas",
        choices=("standard", "published"),
    )
    ratio: float | None = option(
        None, "LR to HR pixel size in ERGAS (default: the scene's, else 4)", low=1e-3, high=1e6
    )
    data_range: float | None = option(
        None, "peak-to-peak range for PSNR and SSIM, in units (default: 1 for data in [0, 1], "
        "else the reference's own)", low=1e-30, high=1e30,
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", canonical(self.mode, ("standard", "published")))
        check(self)

    @staticmethod
    def check_given(given: Mapping[str, Any]) -> None:
        """Refuse options that would change nothing.

        Raises:
            OptionError: a ratio or data range in mode published, whose own are fixed.
        """
        unused = [name for name in ("ratio", "data_range") if name in given]
        if (
            canonical(given.get("mode", "standard"), ("standard", "published")) == "published"
            and unused
        ):
            raise OptionError(
                f"--{unused[0].replace('_', '-')} does not apply to mode published, which fixes it",
                "leave it out, or use --mode standard",
            )


@dataclass(frozen=True)
class ReportConfig:
    """How a report looks."""

    title: str | None = option(None, "heading of the page (default: what was fused)")
    image_size: int = option(
        384, "longest side of a picture; of larger images every n-th row and column is shown",
        unit="pixels", low=32, high=2048,
    )  # fmt: skip
    points: int = option(6, "pixels whose spectra are drawn", low=0, high=24)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class QuicklookConfig:
    """How a cube is drawn in colour."""

    rgb: str | None = option(
        None, "red, green, blue (or one for grey) in nanometres, for example 650,550,450 (default: "
        "CIE true colour, or false colour where the cube lacks the visible)",
    )  # fmt: skip
    bands: str | None = option(
        None, "red, green, blue (or one for grey) as bands, which count from 1: 29,19,9"
    )
    stretch: str = option(
        "2,98", "percentiles of the valid pixels that become black and white, of each colour its own, "
        "which takes out haze and the colour of the light",
    )  # fmt: skip
    one_stretch: bool = option(
        False,
        "stretch red, green and blue alike, which keeps the colours of reflectance as they are",
    )
    max_size: int = option(
        2048, "longest side of the picture; larger images are reduced by a whole factor",
        unit="pixels", low=1, high=8192,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
        self.percentiles  # noqa: B018  # raises for a text that is no pair of percentiles
        if self.rgb is not None and self.bands is not None:
            raise OptionError("--rgb and --bands exclude each other", "give one of them")

    @property
    def percentiles(self) -> tuple[float, float]:
        """The two percentiles of `stretch`, 0 <= low < high <= 100."""
        try:
            low, high = (float(word) for word in self.stretch.split(","))
        except ValueError:
            low = high = math.nan
        if not 0 <= low < high <= 100:
            raise DataError(
                f"stretch {self.stretch!r} is not two percentiles", "give LO,HI like 2,98 or 0,100"
            )
        return low, high


def _clip_range(clip: str) -> tuple[float, float] | None:
    if clip in ("auto", "none"):
        return None
    try:
        low, high = (float(word) for word in clip.split(","))
    except ValueError:
        low = high = math.nan
    if not low < high:
        raise DataError(
            f"clip {clip!r} is neither auto, none nor a range", "give LO,HI with LO < HI"
        )
    return low, high

# The interactive workflow: parameters at the top, one cell a stage. Open it in an editor that knows
# `# %%` cells (VS Code, Spyder, PyCharm) and run them one by one, or all of it with python.

# %% Parameters
from pathlib import Path

import spectralift_cli as sl

folder = Path("interactive")
cube = folder / "cube.h5"  # any cube: .h5, .mat, .npy, .tif, ENVI, ...
synth_config = sl.SynthConfig(
    downsample_ratio=4, psf_type="gaussian", sigma=3.4, kernel_size=7, num_msi_bands=4
)
train_config = sl.TrainConfig(effort="default")

# %% A cube to work on: here the sample; put your own path into `cube` and leave this cell out
folder.mkdir(exist_ok=True)
sl.write_sample("indian-pines", cube, window=(0, 0, 144, 144), overwrite=True)

# %% Degrade it into a blurry hyperspectral and a sharp multispectral image
scene = sl.synth(cube, folder / "scene", synth_config, overwrite=True)
print(scene.recipe)

# %% Train the spectral inverter
trained = sl.train(
    sl.TrainInputs(scene=scene.folder), folder / "model.safetensors", train_config, overwrite=True
)
print(trained.plan)

# %% Make the sharp hyperspectral image
result = sl.infer(folder / "model.safetensors", scene.folder, folder / "sr.h5", overwrite=True)
print(result.files[0])

# %% Score it against the ground truth
scores = sl.evaluate(scene.folder, result.files[0])
for name, value in scores.values.items():
    print(f"{name:6} {value:.5g}")

# %% Look at a spectrum
sharp = sl.read_cube(result.files[0])
print(sharp.meta.wavelengths_nm[:3], sharp.units()[72, 72, :3])

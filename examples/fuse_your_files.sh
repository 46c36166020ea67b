#!/usr/bin/env bash
# Fuse your own images: a blurry hyperspectral cube, a sharp multispectral image of the same place,
# and the MSI's spectral response (curves over wavelength, or weights over the cube's bands).
#
#   fuse_your_files.sh LR_HSI HR_MSI SRF OUTPUT
#   fuse_your_files.sh enmap.hdr sentinel2.tif sentinel2_srf.csv sharp.tif
#
# The output has the MSI's grid and georeference, and the HSI's bands, wavelengths and units.
set -euo pipefail
lr_hsi=$1 hr_msi=$2 srf=$3 output=$4

model=$(spectralift train --lr-hsi "$lr_hsi" --hr-msi "$hr_msi" --srf-file "$srf" \
    -o "${output%.*}.safetensors" --overwrite)
spectralift infer "$model" "$hr_msi" -o "$output" --overwrite

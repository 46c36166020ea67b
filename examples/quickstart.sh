#!/usr/bin/env bash
# The whole pipeline on a real scene: quickstart.sh [FOLDER] (default: demo)
set -euo pipefail
folder=${1:-demo}
mkdir -p "$folder"

cube=$(spectralift sample indian-pines --window 0,0,144,144 -o "$folder/ip.h5" --overwrite)
scene=$(spectralift synth "$cube" -o "$folder/scene" --downsample-ratio 4 --num-msi-bands 4 --overwrite)
model=$(spectralift train "$scene" -o "$folder/model.safetensors" --overwrite)
sharp=$(spectralift infer "$model" "$scene" -o "$folder/sr.tif" --overwrite)

spectralift metrics "$scene" "$sharp" --per-band "$folder/per_band.csv" --overwrite
report=$(spectralift report "$scene" --result "$sharp" --model "$model" -o "$folder/report.html" --overwrite)
printf '\nscene  %s\nmodel  %s\nsharp  %s\nreport %s\n' "$scene" "$model" "$sharp" "$report"

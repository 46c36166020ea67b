#!/usr/bin/env bash
# A real scene from nothing to a described cube: quickstart.sh [FOLDER] (default: demo)
set -euo pipefail
folder=${1:-demo}
mkdir -p "$folder"

cube=$(spectralift sample indian-pines --window 0,0,144,144 -o "$folder/ip.h5" --overwrite)
envi=$(spectralift convert "$cube" "$folder/ip.hdr" --overwrite)
tiff=$(spectralift convert "$envi" "$folder/ip.tif" --overwrite)
spectralift info "$tiff"

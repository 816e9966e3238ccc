#!/usr/bin/env bash
# Pillow 13 shrinks the height first where that is shrunk more; 12 shrinks the width first, always. So one photograph in
# portrait becomes other bytes, and a model other inputs, by the installed version. Two calls, one for each direction,
# give the same bytes in both.
# Source: python-pillow/Pillow, src/libImaging/Resample.c.
# Our answer: contract/devit_contract/artefacts/preprocess.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PY'
import sys
import numpy as np
from PIL import Image

rng = np.random.default_rng(0)
portrait = Image.fromarray(rng.integers(0, 256, (640, 400, 3), np.uint8))
once = portrait.resize((224, 224), Image.Resampling.BICUBIC)
twice = portrait.resize((224, 640), Image.Resampling.BICUBIC).resize((224, 224), Image.Resampling.BICUBIC)
np.save(sys.argv[1], np.stack([np.asarray(once), np.asarray(twice)]))
PY
for version in 12.0.0 13.0.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "pillow==$version" 'numpy<3'
  "$folder/$version/bin/python" "$folder/try.py" "$folder/$version.npy"
done
found=$("$folder/13.0.0/bin/python" - "$folder" <<'PY'
import sys
import numpy as np

old, new = (np.load(f"{sys.argv[1]}/{version}.npy") for version in ("12.0.0", "13.0.0"))
for name, index in (("one call", 0), ("two calls", 1)):
    print(f"{name}: {(old[index] != new[index]).mean():.0%} of all values differ")
PY
)
printf '%s\n' "$found"
diff <(printf '%s\n' "$found") - <<'EXPECTED'
one call: 20% of all values differ
two calls: 0% of all values differ
EXPECTED

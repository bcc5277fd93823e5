#!/bin/sh
# In an image: install a hash-pinned requirements file of this folder into /opt/venv. uv, which does it, is in no layer.
# Not by a build stage of its own: buildah 1.28 cannot mount from a stage that it found in its cache.
set -eu
here=$(dirname "$0")
python -m venv /tmp/tools
/tmp/tools/bin/pip install --quiet --no-cache-dir --disable-pip-version-check --no-deps --require-hashes -r "$here/uv.txt"
/tmp/tools/bin/uv pip install --quiet --python /opt/venv --link-mode copy --compile-bytecode \
  --no-deps --require-hashes -r "$here/$1"
rm -rf /tmp/tools

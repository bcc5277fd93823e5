#!/usr/bin/env bash
# Serve a base model, and an adapter on it, with vLLM on this machine; docs/serving.md has the details.
#
#   bash config/llm/launch_llm.sh <port> <gpu_id> <model_path> [lora_path]
#
# Here a Python 3.11 with httpx is found, nothing else; the decisions are in llm_tuning/serving.
set -euo pipefail

package=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
root=$(dirname -- "$package")

for python in "$root/.venv/bin/python" "$root/../../../bin/python" "${VLLM_PYTHON:-}" "$root/.venv-vllm/bin/python" python3 python; do
  if [[ -n $python ]] && "$python" -c 'import sys, httpx; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    # -P: the documented folder to start from, llm_tuning/, must not stand for top-level modules of that name.
    exec "$python" -P -c 'import sys; sys.path.insert(0, sys.argv.pop(1))
from llm_tuning.serving.launch import main
sys.exit(main())' "$root" "$@"
  fi
done
echo "error: no Python 3.11 with httpx was found; make the environments with \`make setup vllm-env\` in $root" >&2
exit 64

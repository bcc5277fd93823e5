"""vLLM's environment variables, and how much memory its cache gets on a CPU."""

from __future__ import annotations

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # `python -m` puts the current folder first, and llm_tuning/ has modules with everyday names.
    "PYTHONSAFEPATH": "1",
}
CACHE_ROOT = {"VLLM_CACHE_ROOT": "/tmp/vllm"}
"""In a pod, where the root file system is read-only."""
KV_CACHE_GIB = (1, 16)
"""Bounds of a quarter of the memory, which the CPU build gets for its cache; its own default takes nearly all."""
KEEP_ALIVE_SECONDS = 120
"""Longer than the agent keeps an idle connection (15 s): with vLLM's own 5 s a request now and then meets one that vLLM
is just closing, and is lost."""
MANAGED = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE_SECONDS),
}
"""For an engine whose adapters the agent loads and unloads."""
MODEL_RUNNER_VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"
PYTHON_VARIABLE, ARGUMENTS_VARIABLE, API_KEY_VARIABLE = "VLLM_PYTHON", "VLLM_ARGS", "VLLM_API_KEY"
"""What a user of `launch_llm.sh` sets: a Python that has vLLM, further arguments for it, and the key it requires."""


def cpu_environment(memory_bytes: int) -> dict[str, str]:
    """Build vLLM's environment for serving on the CPU with `memory_bytes`."""
    least, most = KV_CACHE_GIB
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(max(least, min(most, memory_bytes // 4 // 2**30))),
        # Binding threads to cores makes two servers of one machine fight for the same ones.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }

"""What vLLM's log names as the cause; lines as vLLM 0.32 writes them."""

from __future__ import annotations

from llm_tuning.engines.vllm.log import last_error, remedy

SHARED_CARD = (
    "ValueError: Free memory on device cuda:0 (30.1/79.1 GiB) on startup is less than desired GPU memory utilization "
    "(0.92, 72.8 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)
CORE_FAILED = f"""\
(EngineCore pid=41) ERROR 12-01 02:16:50 [core.py:1510] EngineCore failed to start.
(EngineCore pid=41) ERROR 12-01 02:16:50 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=41) ERROR 12-01 02:16:50 [core.py:1510]     raise ValueError(
(EngineCore pid=41) ERROR 12-01 02:16:50 [core.py:1510] {SHARED_CARD}
Traceback (most recent call last):
  File "/x/vllm/entrypoints/openai/api_server.py", line 59, in <module>
    main()
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}
"""
WORKER_FAILED = f"""\
(Worker_TP1 pid=52) ERROR 12-01 02:16:50 [multiproc_executor.py:780] {SHARED_CARD}
(EngineCore pid=41) ERROR 12-01 02:16:50 [core.py:1510] Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}
"""  # noqa: E501


def test_the_error_is_the_cause_and_not_what_followed_from_it() -> None:
    assert last_error(CORE_FAILED, most=500) == SHARED_CARD
    assert last_error(WORKER_FAILED, most=500) == SHARED_CARD


def test_what_followed_is_said_where_the_log_has_nothing_better() -> None:
    end = CORE_FAILED[CORE_FAILED.index("Traceback (most recent call last):\n  File") :]
    assert last_error(end, most=500).startswith("RuntimeError: Engine core initialization failed")


def test_a_card_that_others_hold_has_a_remedy_in_the_words_of_the_spec() -> None:
    assert "spec.vllm.gpuMemoryUtilization" in remedy(SHARED_CARD)
    assert remedy("ValueError: anything else") == ""


INSPECTION_FAILED = """\
(APIServer pid=3244) ERROR 12-01 06:48:59 [registry.py:1120] Error in inspecting model architecture 'Qwen3_5ForConditionalGeneration'
(APIServer pid=3244) ERROR 12-01 06:48:59 [registry.py:1120] subprocess.CalledProcessError: Command '['python', '-m', 'vllm.model_executor.models.registry']' returned non-zero exit status 1.
(APIServer pid=3244) ERROR 12-01 06:48:59 [registry.py:1120] The above exception was the direct cause of the following exception:
(APIServer pid=3244) ERROR 12-01 06:48:59 [registry.py:1120] RuntimeError: Error raised in subprocess:
(APIServer pid=3244) ERROR 12-01 06:48:59 [registry.py:1120]     from torchvision.transforms.v2 import functional as tvF
(APIServer pid=3244) ERROR 12-01 06:48:59 [registry.py:1120] ModuleNotFoundError: No module named 'torchvision'
Traceback (most recent call last):
  File "/x/vllm/engine/arg_utils.py", line 1955, in create_model_config
    return ModelConfig(
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, Model architectures ['Qwen3_5ForConditionalGeneration'] failed to be inspected. Please check the logs for more details. [type=value_error, input_value=ArgsKwargs(())]
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""  # noqa: E501
DIED_OF_A_REQUEST = """\
(EngineCore pid=41) ERROR 12-01 06:50:00 [core.py:1500] AssertionError: CPU GDN attention requires BF16.
(APIServer pid=1) ERROR 12-01 06:50:00 [async_llm.py:700] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.
"""  # noqa: E501


def test_a_class_that_cannot_be_inspected_has_its_cause_further_up() -> None:
    cause = "ModuleNotFoundError: No module named 'torchvision'"
    assert last_error(INSPECTION_FAILED, most=500) == cause
    assert "make vllm-env" in remedy(cause)


def test_an_engine_that_died_of_a_request_has_its_own_last_words() -> None:
    assert last_error(DIED_OF_A_REQUEST, most=500) == "AssertionError: CPU GDN attention requires BF16."


def test_an_error_without_words_is_one_too() -> None:
    log = "ValueError: earlier\n(EngineCore pid=4) ERROR 12-01 06:50:00 [core.py:1500] AssertionError\nlater"
    assert last_error(log, most=500) == "AssertionError"

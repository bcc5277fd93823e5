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

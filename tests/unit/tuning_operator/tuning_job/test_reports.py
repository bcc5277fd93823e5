"""What pods report of their progress, and when it is written."""

from __future__ import annotations

from llm_tuning.api.tuning_job import Progress
from tests.support.pass_bench import KEY, Bench
from tuning_operator.core.cache import JOBS, TUNING_JOBS
from tuning_operator.pods.trouble import Reported


def progress(step: int) -> Progress:
    return Progress(percent=step, step=step, last_update_time=f"step {step}")


async def reported(bench: Bench, step: int) -> None:
    bench.worker.report(KEY, Reported(progress(step)))
    await bench.look()


async def test_progress_is_written_at_most_once_in_ten_seconds_and_the_newest_counts(bench: Bench) -> None:
    bench.start()
    await bench.look()
    before = len(bench.cluster.writes)
    for step in range(1, 31):
        bench.seconds += 1
        await reported(bench, step)
    assert len(bench.cluster.writes) - before == 3
    assert bench.status["progress"]["step"] == 30


async def test_progress_alone_is_no_event_and_the_same_progress_no_write(bench: Bench) -> None:
    bench.start()
    await bench.look()
    bench.seconds += 20
    await reported(bench, 1)
    writes = list(bench.cluster.writes)
    bench.seconds += 20
    await reported(bench, 1)
    assert bench.cluster.writes == writes
    assert not any(write.startswith("event") for write in writes)


async def test_progress_of_a_namesake_is_not_taken_over(bench: Bench) -> None:
    bench.start()
    await bench.look()
    bench.worker.report(KEY, Reported(progress(90)))
    bench.cluster.remove(TUNING_JOBS, "team", "faq")
    bench.cluster.remove(JOBS, "team", "faq-check")
    bench.start(uid="another")
    bench.seconds += 20
    await bench.look()
    assert "progress" not in bench.status


async def test_a_report_for_a_tuning_job_that_is_not_there_is_dropped(bench: Bench) -> None:
    bench.worker.report(KEY, Reported(progress(1)))
    assert len(bench.queue) == 0


async def test_a_loss_that_was_reported_between_two_writes_is_not_lost(bench: Bench) -> None:
    bench.start()
    await bench.look()
    bench.worker.report(KEY, Reported(Progress(percent=7, step=1, loss=2.5, last_update_time="t")))
    bench.worker.report(KEY, Reported(Progress(percent=8, step=2, last_update_time="u")))
    bench.seconds += 20
    await bench.look()
    assert (bench.status["progress"]["step"], bench.status["progress"]["loss"]) == (2, 2.5)


async def test_what_the_api_server_gives_back_is_not_written_again(bench: Bench) -> None:
    """It makes 3.0 a 3 and adds defaults; that is no difference."""
    bench.start()
    await bench.look()
    bench.worker.report(KEY, Reported(Progress(percent=7, step=1, loss=2.0, epoch=1.0, last_update_time="t")))
    bench.seconds += 20
    await bench.look()
    assert bench.status["progress"]["loss"] == 2
    writes = len(bench.cluster.writes)
    bench.seconds += 20
    await bench.look()
    assert len(bench.cluster.writes) == writes

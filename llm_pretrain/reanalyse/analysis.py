"""Everything the reanalysis finds, as numbers: quick comparisons, and fits in several processes."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

from llm_pretrain.reanalyse import comparisons, halves, predictor, rates
from llm_pretrain.reanalyse.load import PaperRun

Task = Callable[[], Any]
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Analysis:
    """The numbers of all sections."""

    runs: int
    diverged: list[str]
    """Names of the runs that failed, and count nowhere."""
    repeats: comparisons.Repeats
    cosine_and_wsd: list[comparisons.Horizon]
    sqrt_and_linear: list[comparisons.Shapes]
    best_rates: rates.RateTransfer
    halves: list[halves.Extrapolation]
    predictor: predictor.Trials


def analyse(
    runs: Sequence[PaperRun],
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, all_: None,
) -> Analysis:
    """All of it; the fits run in `workers` processes (as many as processors, 8 at most).

    `progress` is called with the number of fits done and of all.
    """
    joined, trials = halves.selected(runs), predictor.trials(runs)
    # Longest first, so that no process ends up with all the work.
    tasks: list[Task] = [partial(predictor.outcomes, trial, runs) for trial in trials]
    tasks += [partial(halves.extrapolate, curve) for curve in joined]
    done: dict[int, Any] = {}
    progress(0, len(tasks))
    for index, result in _results(tasks, workers or min(_MOST_WORKERS, os.cpu_count() or 1)):
        done[index] = result
        progress(len(done), len(tasks))
    results = [done[index] for index in range(len(tasks))]
    return Analysis(
        runs=len(runs),
        diverged=[run.name for run in runs if run.diverged],
        repeats=comparisons.repeats(runs),
        cosine_and_wsd=comparisons.cosine_and_wsd(runs),
        sqrt_and_linear=comparisons.sqrt_and_linear(runs),
        best_rates=rates.best_rates(runs),
        halves=results[len(trials) :],
        predictor=predictor.collected([s for own in results[: len(trials)] for s in own]),
    )


def _results(tasks: Sequence[Task], workers: int) -> Iterator[tuple[int, Any]]:
    """Index and result of each task as it ends."""
    if workers == 1 or len(tasks) < 2:
        for i, task in enumerate(tasks):
            yield i, task()
        return
    # A fork would copy the threads of the linear algebra library in whatever state they are.
    with ProcessPoolExecutor(min(workers, len(tasks)), get_context("spawn")) as pool:
        places = {pool.submit(task): i for i, task in enumerate(tasks)}
        try:
            for future in as_completed(places):
                yield places[future], future.result()
        except BaseException:
            # Otherwise an interrupt would wait for every fit that is still in the queue.
            pool.shutdown(wait=False, cancel_futures=True)
            raise

"""Which checkpoints can be submitted to a benchmark; `annotator/export/benchmarks.py` writes its files."""

from __future__ import annotations

from annotator.errors import UserError
from annotator.export.benchmarks import BENCHMARKS, Benchmark, check_vertices, write_submission
from annotator.hand.model import HandModel

__all__ = ["BENCHMARKS", "Benchmark", "check_submission", "write_submission"]


def check_submission(benchmark: str, hand: HandModel) -> Benchmark:
    """The benchmark of a name, if this hand can be submitted to it; ask before predicting.

    Raises:
        UserError: no such benchmark, or a hand without MANO's vertices.
    """
    if benchmark not in BENCHMARKS:
        raise UserError(f"no benchmark '{benchmark}': give one of {', '.join(BENCHMARKS)}")
    found = BENCHMARKS[benchmark]
    check_vertices(found.title, hand.id, hand.vertex_count)
    return found

"""Check that a checkpoint can be submitted to a benchmark; `annotator/export/benchmark_files.py` writes the files."""

from __future__ import annotations

from annotator.errors import UserError
from annotator.export.benchmark_files import BENCHMARKS, Benchmark, write_submission
from annotator.hand.mano_mesh import check_mano_vertices
from annotator.hand.model import HandModel

__all__ = ["BENCHMARKS", "Benchmark", "check_submission", "write_submission"]


def check_submission(benchmark: str, hand: HandModel) -> Benchmark:
    """Return the benchmark with this name; call before predicting.

    Raises:
        UserError: the name is unknown, or the hand does not have MANO's vertices.
    """
    if benchmark not in BENCHMARKS:
        raise UserError(f"no benchmark '{benchmark}': give one of {', '.join(BENCHMARKS)}")
    found = BENCHMARKS[benchmark]
    check_mano_vertices(found.title, hand.id, hand.vertex_count)
    return found

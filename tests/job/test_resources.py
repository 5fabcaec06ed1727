"""Worker plans: as many models as fit on the machines, with room for a decoder."""

from __future__ import annotations

import pytest

from annotator.errors import UserError
from annotator.job.options import ComputeOptions
from annotator.job.resources import TASK_CPUS, memory_of_model, plan_workers_on

LAPTOP = [{"CPU": 2.0}]
HEAD = {"CPU": 64.0}
GPUS = {"CPU": 4.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("nodes", "options", "workers", "threads"),
    [
        (LAPTOP, {}, 2, 1),
        (LAPTOP, {"workers": 1}, 1, 2),
        (LAPTOP, {"threads": 2}, 1, 2),
        ([{"CPU": 1.0}], {}, 1, 1),
        ([{"CPU": 8.0, "memory": 100.0 * 2**30}], {}, 8, 1),
        ([{"CPU": 8.0, "memory": 3.5 * 2**30}], {}, 3, 2),
        ([{"CPU": 8.0, "memory": 0.5 * 2**30}], {}, 1, 8),
        ([{"CPU": 8.0}], {"threads": 3}, 2, 3),
        ([{"CPU": 8.0, "memory": 100.0 * 2**30}, {"CPU": 8.0, "memory": 2.5 * 2**30}], {}, 10, 1),
        ([{"CPU": 8.0, "memory": 4.0 * 2**30}, {"CPU": 4.0, "memory": 0.5 * 2**30}], {}, 4, 2),
        ([{"CPU": 8.0, "memory": 2.5 * 2**30}], {"workers": 4}, 4, 2),
        ([{"CPU": 8.0}] * 3, {}, 24, 1),
        ([{"CPU": 8.0}, {"CPU": 2.0}, {}], {}, 10, 1),
        ([{"CPU": 8.0}] * 3, {"workers": 6}, 6, 4),
        ([HEAD, GPUS], {}, 8, 1),
        ([HEAD, {"CPU": 16.0, "GPU": 2.0}], {"gpus_per_worker": 0.5}, 4, 4),
        ([{"CPU": 16.0, "GPU": 4.0}] * 2, {"gpus_per_worker": 2}, 4, 8),
        ([{"CPU": 16.0, "GPU": 4.0}] * 2, {"workers": 3}, 3, 4),
    ],
)
def test_all_models_fit_and_leave_room(nodes, options, workers, threads):
    plan = plan_workers_on(nodes, ComputeOptions(**options))
    assert (plan.workers, plan.threads) == (workers, threads)
    # Placed one by one, as Ray does: every model finds a machine, and a task does, too.
    left = [dict(node) for node in nodes]
    for _ in range(workers):
        node = next(
            n
            for n in left
            if n.get("CPU", 0) >= plan.worker_cpus - 1e-9
            and n.get("GPU", 0) >= plan.worker_gpus - 1e-9
            and n.get("memory", 1e99) >= plan.worker_memory
        )
        node["memory"] = node.get("memory", 1e99) - plan.worker_memory
        node["CPU"] -= plan.worker_cpus
        node["GPU"] = node.get("GPU", 0) - plan.worker_gpus
    assert max(node.get("CPU", 0) for node in left) >= TASK_CPUS - 1e-9 and plan.decoders >= 1


@pytest.mark.parametrize("cpus", [2.0, 4.0, 16.0, 64.0])
def test_without_gpus_as_many_open_as_there_are_cores(cpus):
    plan = plan_workers_on([{"CPU": cpus}], ComputeOptions())
    assert (plan.workers, plan.decoders) == (cpus, cpus)
    # Fewer models or other threads get no more decoders.
    for options in ({"workers": 1}, {"threads": 2}):
        assert 1 <= plan_workers_on([{"CPU": cpus}], ComputeOptions(**options)).decoders <= cpus


def test_decoders_get_the_memory_that_models_leave():
    for gib, workers, decoders in ((3.5, 3, 2), (9.0, 8, 4), (100.0, 8, 8), (0.5, 1, 1)):
        plan = plan_workers_on([{"CPU": 8.0, "memory": gib * 2**30}], ComputeOptions(), model_bytes=2**30)
        assert (plan.workers, plan.decoders) == (workers, decoders)


def test_larger_photos_batches_and_weights_take_more_memory():
    # Measured: 0.42 to 0.52 GiB for the shipped network, 1.35 GiB for the paper's.
    assert 0.5 * 2**30 < memory_of_model(96, 32, 20 << 20) < 0.8 * 2**30
    assert 1.3 * 2**30 < memory_of_model(224, 32, 99 << 20) < 1.7 * 2**30
    assert memory_of_model(96, 256, 20 << 20) > memory_of_model(96, 32, 20 << 20)


@pytest.mark.parametrize(
    ("nodes", "options", "words"),
    [
        ([{}], {}, "no machine of the cluster has a CPU"),
        ([GPUS], {"workers": 9}, "9 workers requested, but 8 fit on the GPUs"),
        ([{"CPU": 8.0, "GPU": 4.0}], {"gpus_per_worker": 8}, "no machine has 8 GPUs"),
        ([GPUS], {"gpus_per_worker": 1.5}, "give a whole number, or a fraction of one GPU"),
        (LAPTOP, {"workers": 500}, "500 workers are too many for 2 cores: give --workers 2"),
    ],
)
def test_a_plan_that_does_not_fit_is_one_line(nodes, options, words):
    with pytest.raises(UserError, match=words) as error:
        plan_workers_on(nodes, ComputeOptions(**options))
    assert "\n" not in str(error.value)

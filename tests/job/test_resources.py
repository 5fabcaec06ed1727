"""Who works where: always as many models as fit their machines, and always room for an opener."""

from __future__ import annotations

import pytest

from annotator.errors import UserError
from annotator.job.resources import TASK_CPUS, ComputeOptions, crew_on, memory_of_model

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
    crew = crew_on(nodes, ComputeOptions(**options))
    assert (crew.workers, crew.threads) == (workers, threads)
    # Placed one by one, as Ray does: every model finds a machine, and a task does, too.
    left = [dict(node) for node in nodes]
    for _ in range(workers):
        node = next(
            n
            for n in left
            if n.get("CPU", 0) >= crew.worker_cpus - 1e-9
            and n.get("GPU", 0) >= crew.worker_gpus - 1e-9
            and n.get("memory", 1e99) >= crew.worker_memory
        )
        node["memory"] = node.get("memory", 1e99) - crew.worker_memory
        node["CPU"] -= crew.worker_cpus
        node["GPU"] = node.get("GPU", 0) - crew.worker_gpus
    assert max(node.get("CPU", 0) for node in left) >= TASK_CPUS - 1e-9 and crew.decoders >= 1


@pytest.mark.parametrize("cpus", [2.0, 4.0, 16.0, 64.0])
def test_without_gpus_as_many_open_as_there_are_cores(cpus):
    crew = crew_on([{"CPU": cpus}], ComputeOptions())
    assert (crew.workers, crew.decoders) == (cpus, cpus)
    # And with fewer models, or other threads, no more.
    for options in ({"workers": 1}, {"threads": 2}):
        assert 1 <= crew_on([{"CPU": cpus}], ComputeOptions(**options)).decoders <= cpus


def test_openers_get_the_memory_that_models_leave():
    for gib, workers, decoders in ((3.5, 3, 2), (9.0, 8, 4), (100.0, 8, 8), (0.5, 1, 1)):
        crew = crew_on([{"CPU": 8.0, "memory": gib * 2**30}], ComputeOptions(), model_bytes=2**30)
        assert (crew.workers, crew.decoders) == (workers, decoders)


def test_larger_photos_batches_and_weights_take_more_memory():
    # Measured: 0.42 to 0.52 GiB of the shipped network, 1.35 of the paper's.
    assert 0.5 * 2**30 < memory_of_model(96, 32, 20 << 20) < 0.8 * 2**30
    assert 1.3 * 2**30 < memory_of_model(224, 32, 99 << 20) < 1.7 * 2**30
    assert memory_of_model(96, 256, 20 << 20) > memory_of_model(96, 32, 20 << 20)


@pytest.mark.parametrize(
    ("nodes", "options", "words"),
    [
        ([{}], {}, "no machine of the cluster has a CPU"),
        ([GPUS], {"workers": 9}, "9 workers asked for, but the GPUs have room for 8"),
        ([{"CPU": 8.0, "GPU": 4.0}], {"gpus_per_worker": 8}, "no machine has the 8 GPUs"),
        ([GPUS], {"gpus_per_worker": 1.5}, "give a whole number of them, or a part of one"),
        (LAPTOP, {"workers": 500}, "500 workers are too many for 2 cores: give --workers 2"),
    ],
)
def test_what_does_not_fit_is_one_line(nodes, options, words):
    with pytest.raises(UserError, match=words) as error:
        crew_on(nodes, ComputeOptions(**options))
    assert "\n" not in str(error.value)

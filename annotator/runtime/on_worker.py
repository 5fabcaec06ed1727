"""Run a function in one process of a Ray cluster: on a GPU if it has one, otherwise on all cores of a machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from annotator.errors import UserError, first_line
from annotator.runtime.ray_session import check_shared, connected

#: Retries if the process or its machine dies.
_TRIES = 3

Result = TypeVar("Result")


def on_worker(
    do: Callable[..., Result], address: str, places: Sequence[str] = (), **arguments: Any
) -> Result:
    """Return `do(**arguments)`, called in a process of the cluster; it may be called again if that process dies.

    Args:
        do: a function of a module. address: of the cluster, as for `annotator.runtime.ray_session.connected`.
        places: existing paths and URLs that the function reads.
        arguments: of the function.

    Raises:
        UserError: `do` raised it, no cluster is at this address, or the process died too often.
    """
    with connected(address):
        import ray

        check_shared(places)
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        # Ray gives a process as many threads as CPUs.
        cpus = 1 if gpus else max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
        task: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=_TRIES)(do)
        try:
            result: Result = ray.get(task.remote(**arguments))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise UserError(
                f"the process on the cluster died {_TRIES + 1} times ({first_line(error)}): if memory ran out, "
                "use machines with more"
            ) from None
        return result

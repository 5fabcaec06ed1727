"""The Ray session of a job: a local one, or a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from annotator.errors import UserError, first_line
from annotator.runtime.local_ray import local_ray
from annotator.runtime.stderr import quiet_stderr
from annotator.runtime.termination import same_sigterm
from annotator.storage.files import is_local, local_path


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Connect to Ray within the block, unless this process is connected already.

    `address`: None starts a local session; `auto` joins the cluster of this machine.

    Raises:
        UserError: there is no cluster at this address, or Ray does not start here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # The dispatcher counts and reports dead processes; Ray would print forty lines for each.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed")
    import ray

    if ray.is_initialized():
        yield
        return
    if address is not None:
        _join(address)
        try:
            yield
        finally:
            ray.shutdown()
        return
    with local_ray():
        yield


def _join(address: str) -> None:
    import ray

    try:
        with same_sigterm(), quiet_stderr():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ray.exceptions.AuthenticationError:
        raise UserError(
            f"the Ray cluster at '{address}' requires a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN unless "
            "~/.ray/auth_token holds it"
        ) from None
    except (ConnectionError, ValueError) as error:
        first = first_line(error)
        raise UserError(
            f"no Ray cluster at '{address}' ({first}): start one with `ray start --head`"
        ) from None


def missing_paths(places: Sequence[str]) -> list[str]:
    """Return the local paths that this machine does not have."""
    return [place for place in places if not os.path.exists(place)]  # noqa: PTH110 - may hold surrogates


def check_shared(
    places: Iterable[str], missing: Callable[[Sequence[str]], list[str]] = missing_paths
) -> None:
    """Check that every machine of the cluster sees the local paths.

    Args:
        places: paths and URLs.
        missing: function of a module that returns the missing ones of local paths; runs on each machine.

    Raises:
        UserError: a machine does not see one of them.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    look = ray.remote(num_cpus=0, max_retries=2)(_call)
    local = [str(local_path(place)) for place in places if is_local(place)]
    for node in nodes if len(nodes) > 1 else ():
        on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        try:
            absent = ray.get(look.options(scheduling_strategy=on_node).remote(missing, local))
        except ray.exceptions.RayError:
            continue  # the machine left the cluster
        for path in absent:
            raise UserError(
                f"machine {node['NodeManagerHostname']} of the cluster does not see '{path}': give a URL, or a folder "
                "that all machines share"
            )


def _call(missing: Callable[[Sequence[str]], list[str]], places: list[str]) -> list[str]:
    return missing(places)

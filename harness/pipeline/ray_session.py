"""Ray: start it here or join a cluster, see that workers run our code, stream tickets through actors.

The only module that imports Ray. Its workers get this process's package on their path and not the working folder,
which Ray would put there; other machines are asked what they would run, and refused if it is something else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from harness.errors import UserError
from harness.pipeline import outputs, worker_code
from harness.pipeline.schedule import ActorGroup

_ACTOR_CPUS = 0.01  # bookkeeping only: actors must never reserve all CPUs
_ANSWER_S = 10.0  # for a cluster's port to take a connection
_JOIN_S = 50.0  # for joining a cluster that took one
_CHECK_S = 120.0  # for every node to say what code it has
_SOCKET_BYTES = 107  # Linux's limit on a socket's path
_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # below the temporary folder
_CLIENT_PORT = 10001
_ENVIRONMENT = {  # before Ray is imported: its processes would otherwise write on our outputs, or call home
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class Node(NamedTuple):
    """What a machine of a cluster has."""

    gpus: int
    gpu_bytes: int | None  # of its smallest GPU; None: not known, or there is none
    cores: int


def check_before(address: str | None) -> None:
    """Refuse, before any work, a cluster that does not answer and a temporary folder that Ray cannot use.

    Raises:
        UserError: what was given, and what to do.
    """
    if address is not None:
        _require_answer(address)
        return
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    if variable is None:
        return
    folder = os.environ[variable]
    room = _SOCKET_BYTES - len(_SOCKET)
    if len(os.fsencode(folder)) > room:
        raise UserError(
            f"{variable}={folder}: too long for Ray's sockets, which lie in it (at most {room} bytes): "
            "name a shorter one, like RAY_TMPDIR=/tmp"
        )
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{variable}={folder} is no folder that can be written, which Ray needs: name another")


def _require_answer(address: str) -> None:
    """Refuse an address where nobody takes a connection; a cluster that was stopped is the usual case."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host and address not in ("auto", "local"):
        raise UserError(f"Ray's address {address!r} is not of the form HOST:PORT, auto or ray://HOST:{_CLIENT_PORT}")
    if not host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(_unreachable(address, str(error))) from None


def _unreachable(address: str, why: str) -> str:
    return (
        f"no Ray cluster answers at {address} ({why}): it may have been stopped; name a running one with --address or "
        "RAY_ADDRESS, or unset RAY_ADDRESS to use this machine"
    )


@contextmanager
def session(address: str | None, num_gpus: int) -> Iterator[None]:
    """Ray running here, or joined at ``address``, while the block runs.

    Raises:
        UserError: it cannot be reached.
    """
    connect(address, num_gpus)
    import ray

    try:
        yield
    finally:
        ray.shutdown()


def connect(address: str | None, num_gpus: int = 0) -> None:
    """Start Ray on this machine, or join the cluster at ``address``; nothing where that was done already.

    Raises:
        UserError: the cluster cannot be reached.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    from ray.job_config import JobConfig

    if ray.is_initialized():
        return
    config = JobConfig(_py_driver_sys_path=[str(Path(__file__).parents[2])])
    config._client_job = True  # the working folder stays off the workers' path; tests/pipeline/test_ray_session.py
    try:
        with _deadline(address):
            context = ray.init(
                address=address or "local",
                num_gpus=None if address else num_gpus,
                job_config=config,
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level="ERROR",
            )
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        if address is None:
            raise UserError(f"Ray cannot be started on this machine: {why}") from error
        raise UserError(_unreachable(address, why)) from error
    if address is None:
        with contextlib.suppress(OSError, KeyError):
            Path(context.address_info["session_dir"]).chmod(0o700)  # what workers print is nobody else's business


@contextmanager
def _deadline(address: str | None) -> Iterator[None]:
    """Leave the process if joining a cluster takes too long: Ray may wait in C++, where no exception reaches."""
    if address is None:
        yield
        return

    def leave() -> None:
        outputs.tell(f"harness: {_unreachable(address, f'no answer in {_JOIN_S:g} s')}")
        os._exit(2)

    timer = threading.Timer(_JOIN_S, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def nodes(address: str) -> list[Node]:
    """What each machine of the cluster at ``address`` has; stays connected.

    Raises:
        UserError: the cluster cannot be reached.
    """
    check_before(address)
    connect(address)
    alive = _alive()
    asked = [n["NodeID"] for n in alive if n["Resources"].get("GPU")]
    memory = dict(zip(asked, _on_nodes(worker_code.gpu_bytes, (), asked), strict=True))
    return [
        Node(int(n["Resources"].get("GPU", 0)), memory.get(n["NodeID"]), int(n["Resources"].get("CPU", 0)))
        for n in alive
    ]


def require_same_code(packages: Sequence[str], distributions: Sequence[str]) -> dict[str, Any]:
    """Refuse a cluster where a node would run other code than this process; returns what this one runs.

    Args:
        packages: import packages beside ours whose modules workers run.
        distributions: libraries whose versions matter.

    Raises:
        UserError: which node, and what differs.
    """
    asked = (["harness", *packages], list(distributions))
    own = worker_code.identity(*asked)
    alive = _alive()
    answers = _on_nodes(worker_code.identity, asked, [n["NodeID"] for n in alive])
    for node, answer in zip(alive, answers, strict=True):
        if differs := worker_code.difference(own, answer):
            raise UserError(
                f"workers on {node['NodeManagerAddress']} would run other code than this process: {differs}; "
                "install the same there"
            )
    return own


def _alive() -> list[dict[str, Any]]:
    import ray

    return [n for n in ray.nodes() if n["Alive"]]


def _on_nodes(function: Callable[..., Any], arguments: tuple[Any, ...], node_ids: Sequence[str]) -> list[Any]:
    """What ``function``, sent by value, answers on each node.

    Raises:
        UserError: a node does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.cloudpickle.register_pickle_by_value(worker_code)
    try:
        remote = ray.remote(num_cpus=0, max_retries=1)(function)
        asked = [
            remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*arguments)
            for node in node_ids
        ]
        answers: list[Any] = ray.get(asked, timeout=_CHECK_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"a node of the Ray cluster does not answer: {type(error).__name__}: {why}") from error
    finally:
        ray.cloudpickle.unregister_pickle_by_value(worker_code)
    return answers


def stream(
    actor: type,
    tickets: Sequence[pa.Table],
    groups: Sequence[tuple[ActorGroup, Mapping[str, Any]]],
    *,
    size: int,
    blind: bool,
    patience_s: float,
) -> Iterator[pa.Table]:
    """Tickets through actor groups, one after the other; each comes back when it is through, in any order.

    Args:
        actor: the class.
        tickets: one-row tables.
        groups: what runs where, and what its actors are made with.
        size: actors of each group.
        blind: whether actors without a share of a GPU must be kept from seeing any.
        patience_s: without progress, before Ray gives the run up.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    context.execution_options.preserve_order = False
    context.execution_no_progress_timeout_s = patience_s
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.from_arrow(list(tickets))
    for group, arguments in groups:
        dataset = dataset.map_batches(
            actor,
            fn_constructor_kwargs=dict(arguments),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=size),
            num_cpus=_ACTOR_CPUS,
            num_gpus=group.gpu,
            # Ray leaves the variable alone where no GPU is asked for, and such an actor would see them all.
            **({"runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}} if blind and not group.gpu else {}),
        )
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)

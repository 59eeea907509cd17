"""
Processes of their own, for what is killed, for what meets others, and for scripts.

They are forks of a server that has imported all that takes long and has done nothing: a fork of the tests' process
could not run backward once any test before it has started autograd's threads.
"""

import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import datasets

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ccrk.build", "peft"])


def exit_code_of(function: Callable, *arguments, **options) -> int:
    """Calls a function; -9 where it is killed."""
    process = CONTEXT.Process(target=function, args=arguments, kwargs=options)
    process.start()
    process.join()
    return process.exitcode


def run_script(log: Path, script: Path, *arguments, processes: int = 1, timeout: float = 240, **environment) -> str:
    """Runs a script as torchrun does, in processes that see each other; fails where one of them does.

    Args:
        log: a file for what they print.
        environment: further variables.

    Returns: what they printed.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # One thread per process: two processes whose threads wait for each other's cores are many times slower.
    environment = {"OMP_NUM_THREADS": "1", **environment}
    if processes > 1:
        environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command, cache, started = [str(script), *map(str, arguments)], str(datasets.config.HF_DATASETS_CACHE), []
    for rank in range(processes):
        own = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})
        started.append(CONTEXT.Process(target=_run, args=(log, own, cache, command)))
        started[-1].start()
    try:
        for process in started:
            process.join(timeout)
    finally:
        for process in started:
            process.kill()
    printed = log.read_text()
    assert [process.exitcode for process in started] == [0] * processes, printed[-2000:]
    return printed


def _run(log: Path, environment: dict[str, str], cache: str, command: list[str]) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= environment
    datasets.config.HF_DATASETS_CACHE = Path(cache)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")

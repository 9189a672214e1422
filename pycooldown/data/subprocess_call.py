"""Call a function in a separate process, for work that must not happen in this one."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["call_apart"]


def call_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return `function(*arguments)`, called in a new process.

    The client of an object store has threads, which a fork does not copy. A process that asks a store only through this
    function can still fork workers that ask stores.

    Args:
        function: A function of a module, which can be imported.
        arguments: Any picklable values. The result must be picklable too.

    Raises:
        Exception: Whatever the function raises.
        RuntimeError: If the process was killed.
    """
    code = f"from {__name__} import _serve; _serve()"
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps((function, arguments)),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{function.__name__} ended with status {done.returncode} in its process; see its output")
    result, error = pickle.loads(done.stdout)  # written by our own process
    if error is not None:
        raise error
    return result


def _serve() -> None:
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # keeps output of the function apart from the result
        function, arguments = pickle.load(sys.stdin.buffer)
        answer: tuple[Any, Exception | None]
        try:
            answer = function(*arguments), None
        except Exception as error:
            answer = None, error
        pickle.dump(answer, out)
    sys.stdout.flush()
    # Threads of a store's client may still run, for example after an error. Python's own end would abort the process.
    os._exit(0)

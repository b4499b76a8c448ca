"""papermill's engine with a folder and an environment for each kernel, so that threads share it.

papermill changes the working folder of the whole process (its ``cwd``), and kernels inherit the
environment of the process; with several lessons at once neither can hold for all of them.
"""

import os
import time
from collections.abc import Mapping
from queue import Empty
from typing import Any

from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.log import logger

NAME = "kdlab"
POLL = 0.25  # seconds


class Client(PapermillNotebookClient):
    """Looks for the kernel's replies again and again instead of waiting for one.

    A widget that talks from inside a cell (``interact``, ``with Output()``) may swallow the wake-up
    of the waiting, and the cell then hangs until its timeout (jupyter/nbclient, issue 312).
    """

    def start_new_kernel_client(self) -> Any:
        """Connect to the kernel; what its shell channel waits for is polled."""
        client = super().start_new_kernel_client()
        wait = client.shell_channel.get_msg

        async def poll(timeout: float | None = None) -> Any:
            start = time.monotonic()
            while True:
                left = POLL if timeout is None else timeout - (time.monotonic() - start)
                try:
                    return await wait(timeout=max(0.0, min(POLL, left)))
                except Empty:
                    if timeout is not None and time.monotonic() - start >= timeout:
                        raise

        client.shell_channel.get_msg = poll
        return client


class Engine(NBClientEngine):
    """papermill's own engine, but the kernel starts in ``folder`` with ``environment`` added."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        log_output: bool = False,
        stdout_file: Any = None,
        stderr_file: Any = None,
        start_timeout: int = 60,
        execution_timeout: int | None = None,
        *,
        folder: str | None = None,
        environment: Mapping[str, str] | None = None,
        input_path: str | None = None,
        **options: Any,
    ) -> Any:
        """Run all cells in one kernel; papermill calls this.

        Args:
            nb_man: papermill's manager of the notebook.
            kernel_name, log_output, stdout_file, stderr_file, start_timeout, execution_timeout,
                input_path: as papermill's own engine.
            folder: where the kernel starts; default: where this process is.
            environment: variables that this kernel has beside those of this process.
            options: traits of nbclient's ``NotebookClient``.
        """
        client = Client(
            nb_man,
            timeout=execution_timeout,
            startup_timeout=start_timeout,
            kernel_name=kernel_name,
            log=logger,
            log_output=log_output,
            stdout_file=stdout_file,
            stderr_file=stderr_file,
            **options,
        )
        return client.execute(cwd=folder, env={**os.environ, **(environment or {})})


papermill_engines.register(NAME, Engine)

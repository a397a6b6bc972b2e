"""Snakemake and `lead` from a process that has imported everything already.

A start of Snakemake costs more than a second of imports, a stage of `lead` four, and these tests start hundreds of
both. A server imports once and forks for each call: the same code in a process of its own, with the caller's
arguments, environment, folder and streams. Tests of kills, and of what a start costs, call the real commands.

    python warm.py serve SOCKET FOLDER     FOLDER gets `lead` and `python`, to be found before the real ones
    python warm.py call SOCKET lead|snakemake ARGUMENTS..
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any


def call(address: str, program: str, arguments: list[str]) -> int:
    """Run a program in the server; the exit status."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        request = {"program": program, "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        data = json.dumps(request).encode()
        socket.send_fds(server, [len(data).to_bytes(8, "little")], [0, 1, 2])
        server.sendall(data)
        answers = server.makefile("r")
        process = int(answers.readline())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda number, _: os.kill(process, number))
        return int(answers.readline())


def serve(address: str, folder: Path) -> None:
    """Import what the programs need, then fork for each call, until the tests have ended."""
    folder.mkdir(exist_ok=True)
    for name, line in (
        ("lead", f'exec {sys.executable} -SE {__file__} call {address} lead "$@"'),
        ("python", f'exec {sys.executable} "$@"'),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    _import_everything()
    threading.Thread(target=_end_with_the_tests, daemon=True).start()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen(64)
        os.rename(f"{address}.new", address)  # there when it answers
        while True:
            caller, _ = listener.accept()
            threading.Thread(target=_answer, args=(caller, folder), daemon=True).start()


def _import_everything() -> None:
    """Whatever a job or a call of Snakemake imports; nothing of it starts threads or reads the caller's environment."""
    import gc
    import importlib
    import pkgutil

    import lead

    for module in pkgutil.walk_packages(lead.__path__, "lead."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in (
        "faiss",
        "ir_measures",
        "pytrec_eval",
        "pandas",
        "scipy.stats",
        "snakemake.cli",
        "snakemake.api",
        "snakemake.workflow",
        "snakemake.dag",
        "snakemake.executors.local",
        "snakemake_interface_executor_plugins",
        "transformers.models.auto.modeling_auto",
        "transformers.models.bert.modeling_bert",
    ):
        importlib.import_module(name)
    # the patterns that the first load of a model compiles
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("bert")
    gc.freeze()  # or the first search for garbage in each fork copies all that was imported


def _end_with_the_tests() -> None:
    """End when the tests do, whatever ended them: their end of the pipe is closed then."""
    sys.stdin.buffer.read()
    os._exit(0)


def _answer(caller: socket.socket, folder: Path) -> None:
    with caller:
        size, streams, _, _ = socket.recv_fds(caller, 8, 3)
        data = b""
        while len(data) < int.from_bytes(size, "little"):
            data += caller.recv(1 << 16)
        process = os.fork()
        if process == 0:
            os._exit(_run(json.loads(data), streams, folder))
        for stream in streams:
            os.close(stream)
        caller.sendall(b"%d\n" % process)
        _, status = os.waitpid(process, 0)
        caller.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _run(request: dict[str, Any], streams: list[int], folder: Path) -> int:
    """In the forked process: become the caller, and run the program."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request["program"], *request["arguments"]]
    sys.executable = str(folder / "python")  # beside which the workflow looks for `lead`
    try:
        if request["program"] == "lead":
            from lead.cli import main as lead_main

            return lead_main(request["arguments"])
        from snakemake.cli import main as snakemake_main

        snakemake_main(request["arguments"])
        return 0
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "serve":
        serve(where, Path(rest[0]))
    sys.exit(call(where, rest[0], rest[1:]))

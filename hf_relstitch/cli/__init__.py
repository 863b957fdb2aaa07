"""The command line: `main` is the script `hf-relstitch`, `app` holds its commands."""

import os
import signal
import sys
from typing import Any, NoReturn

INTERRUPTED = 130
"""The exit status of a command that Ctrl-C has ended."""


def __getattr__(name: str) -> Any:
    if name == "app":
        from hf_relstitch.cli.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Interrupt(BaseException):
    """Ctrl-C; another class than KeyboardInterrupt, of which libraries on the way say something of their own."""


class _CtrlC:
    """What Ctrl-C does: it ends the command, which cleans up; a second time it ends the process at once."""

    was_pressed = False

    def __call__(self, *_: object) -> None:
        if self.was_pressed:
            os._exit(INTERRUPTED)
        self.was_pressed = True
        raise _Interrupt


def main() -> None:
    """Run the command line; print an error of ours or Ctrl-C as one line, and exit with status 1 or 130."""
    pressed = _CtrlC()
    before = signal.signal(signal.SIGINT, pressed)
    try:
        _run()
    except BaseException:
        if not pressed.was_pressed:  # else a library may have made another error of it
            raise
        _end_interrupted()
    finally:
        signal.signal(signal.SIGINT, before)


def _run() -> None:
    from rich.console import Console
    from rich.markup import escape

    from hf_relstitch.cli.commands import app
    from hf_relstitch.core.errors import StitchError

    try:
        app()
    except StitchError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
    finally:
        distributed = sys.modules.get("torch.distributed")  # what no command loaded needs no end
        if distributed and distributed.is_available() and distributed.is_initialized():  # by accelerate launch
            distributed.destroy_process_group()


def _end_interrupted() -> NoReturn:
    """Say it in one line, and leave before threads that still run can say more."""
    print("interrupted: what was finished is kept; run the same command again", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(INTERRUPTED)

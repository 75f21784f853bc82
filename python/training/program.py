# SPDX-License-Identifier: MIT
"""How a program starts and ends: errors meant for the user without a traceback, exit codes, ranks left in order."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from training.distributed import leave_world
from training.errors import OptionError, UserError
from training.interrupt import Interrupted


def run_program(main: Callable[[list[str]], object]) -> None:
    """Run `main` on the command line; exit with 2 for a wrong option, 1 for another error, 128 + n for signal n."""
    rank = int(os.environ.get("RANK", "0"))
    try:
        main(sys.argv[1:])
    except Interrupted as stop:
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:  # before training began, or in an evaluation: nothing to save
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        print(f"error{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr, flush=True)
        sys.exit(2 if isinstance(error, OptionError) else 1)
    leave_world()

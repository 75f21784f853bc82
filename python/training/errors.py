# SPDX-License-Identifier: MIT
"""Errors whose message is written for the person at the keyboard; the programs print them without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: the message names the option or the file and says what was expected."""


class OptionError(UserError):
    """An unknown, impossible or contradictory command-line option."""


class DataError(UserError):
    """Data that cannot be used: a missing path, an empty class, an unreadable image."""


class LostWorkerError(DataError):
    """A process that loads data has ended before its time."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written, read or continued."""


class TrainingError(UserError):
    """Training itself went wrong, for example a loss that is not finite."""

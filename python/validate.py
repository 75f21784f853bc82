# SPDX-License-Identifier: MIT
"""Evaluate a checkpoint of `train.py`, a released one, or any weights of a timm model.

python python/validate.py --checkpoint RUN/best.pth                                       as it was trained
python python/validate.py --model container_light --checkpoint FILE --data-path IMAGENET  released weights
    --fuse evaluates the network that `fuse()` makes: the same numbers, faster
"""

from __future__ import annotations

import dataclasses
import json

from tasks.classification.validation import Judgement, ValidationOptions, judge_checkpoint
from training.options import option, parse_explicit
from training.program import run_program


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramOptions(ValidationOptions):
    """The options of this program."""

    json: bool = option(False, "print one JSON object and nothing else", "output")


def main(argv: list[str]) -> Judgement:
    """Evaluate and print.

    Raises:
        UserError: something the user can put right.
    """
    options = ProgramOptions(**parse_explicit(argv, __doc__, ProgramOptions))
    judgement = judge_checkpoint(options, quiet=options.json)
    if options.json and judgement.is_main:
        print(json.dumps(judgement.as_dict()))
    return judgement


if __name__ == "__main__":
    run_program(main)

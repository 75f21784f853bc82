# SPDX-License-Identifier: MIT
"""Judge features by neighbours: of a checkpoint of `dino.py`, of the official DINO, or of any weights of a timm model.

python python/knn.py RUN/best.pth                                            the teacher, on the data of its run
python python/knn.py RUN/best.pth --data-path IMAGENET --linear              elsewhere, with a linear classifier too
python python/knn.py FILE --model deit_small --data-path IMAGENET            released weights
torchrun --nproc-per-node 8 python/knn.py RUN/best.pth --data-path IMAGENET  images shared among GPUs

Beside it stand the untrained network and raw pixels, which features have to beat.
"""

from __future__ import annotations

import dataclasses
import json

from tasks.dino.judgement import FeatureJudgement, JudgementOptions, judge_features
from training.options import option, parse_explicit
from training.program import run_program


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramOptions(JudgementOptions):
    """The options of this program."""

    json: bool = option(False, "print one JSON object and nothing else", "output")


def main(argv: list[str]) -> FeatureJudgement:
    """Judge and print.

    Raises:
        UserError: something the user can put right.
    """
    options = ProgramOptions(**parse_explicit(argv, __doc__, ProgramOptions))
    judgement = judge_features(options, quiet=options.json)
    if options.json and judgement.is_main:
        print(json.dumps(judgement.as_dict()))
    return judgement


if __name__ == "__main__":
    run_program(main)

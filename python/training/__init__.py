"""The parts of `train.py` and `validate.py`, one purpose per file.

options · rules       what the command line means, and which combinations contradict each other
sources · data        where images come from, and how they become batches
randomness            every random number is a function of (seed, epoch, step), never of history
build                 model, optimizer, schedule, weight average: the `Run`
engine                the training loop and the evaluation
checkpoint            the state of a run on disk, written atomically
interrupt             stopping on Ctrl-C or a bad file, on all ranks at the same step
distributed           ranks, devices, collectives
progress · report     what a person sees while it runs and afterwards
"""

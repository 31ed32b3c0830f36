"""Where random numbers come from: each has an address, and nothing that is drawn disturbs anything else."""

import numpy as np
from torch import Generator

# What is left to chance: the order of pictures, the template lines, noise and timesteps, the order of vectors, which
# pictures are held out, the template line and noise of each probe. A training that goes on relies on their numbers:
# append, never reorder.
STREAMS = ("order", "prompts", "noise", "shuffle", "held_out", "probes")


def chance(seed: int, stream: str, *place: int) -> Generator:
    """A generator for one of STREAMS at one place of a training: an epoch, or a batch and what is in it.

    None disturbs another: turning shuffling on changes no noise, a host may ask for orders in any sequence, a training
    that goes on from some step draws there what it would have drawn without a stop, and processes can run different
    batches of it.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), *place))
    return Generator().manual_seed(int(sequence.generate_state(1)[0]))

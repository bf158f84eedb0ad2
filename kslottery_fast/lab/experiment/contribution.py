"""What each row of Embed Tuning accounts for, measured on training examples and kept in a stage of its own."""

from pathlib import Path

import torch

from kslottery_fast.evaluation.contribution_result import RowContributions
from kslottery_fast.evaluation.encoding import collate
from kslottery_fast.lab.models.attention import quick_attention

from .console import ProgressCallback
from .trained import TrainedRows
from .workshop import Workshop

STAGE = "contribution"
"""The name of the stage, after language and seed."""

ENOUGH = 0.95
"""The share of the loss's fall that the rows of an arm of the size "enough" account for, if contribution chose them."""

POINTS = 8
"""Where the path is sampled. Each point gets examples of its own, so more points do not cost more time.

An eighth of the 1,300 default training pairs is about 160 examples, enough for a steady gradient of the frequent rows.
Gauss's rule puts the first point at 2% of the path, where the loss falls fastest.
"""

_FILE = "contributions.safetensors"


def measure(shop: Workshop, tuned: TrainedRows, seed: int, folder: Path, progress: ProgressCallback) -> None:
    """Make the stage: compute the contributions of the rows that Embed Tuning moved.

    Parameters
    ----------
    shop : Workshop
        Model, corpus and settings.
    tuned : TrainedRows
        The rows after Embed Tuning.
    seed : int
        It draws the examples, if not all are used, and deals them out to the points.
    folder : Path
        The folder of the stage.
    progress : callable
        Called with (examples done, examples).

    Notes
    -----
    The fall of the loss is not measured, because that would double the time.
    """
    from kslottery_fast.evaluation.contribution import row_contributions

    features, size = _examples(shop, seed), shop.settings.micro_batch_size
    with quick_attention(shop.model):
        found = row_contributions(
            shop.model,
            shop.base_table()[tuned.token_ids],
            tuned.rows,
            [collate(features[i : i + size], shop.pad_token_id) for i in range(0, len(features), size)],
            token_ids=tuned.token_ids,
            points=min(POINTS, len(features)),
            output=shop.settings.output_role,
            measure_fall=False,
            seed=seed,
            progress=progress,
        )
    found.save(folder / _FILE)


def load(folder: Path) -> RowContributions:
    """The contributions in the folder of a finished stage."""
    return RowContributions.load(folder / _FILE)


def _examples(shop: Workshop, seed: int) -> list[dict[str, list[int]]]:
    """The encoded training examples, or as many of them as the settings ask for, drawn by the seed."""
    features, wanted = shop.train_features, shop.settings.contribution_examples
    if wanted is None or wanted >= len(features):
        return features
    drawn = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:wanted]
    return [features[i] for i in drawn.sort().values.tolist()]

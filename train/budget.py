"""Whether a dataset can fill a recipe's token budgets, asked before a run starts."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Final

from shards.reader import Dataset, read_meta
from shards.schema import GRID_SHAPE, PATCH_SHAPE
from train.config import Recipe
from train.data import content_tokens
from train.errors import BudgetError
from train.masks import least_content

MAX_DROPPED: Final = 0.01  # DESIGN section 6: over 1% of samples too small, the recipe does not fit the dataset
NAMED: Final = 5
READERS: Final = 32


def fit_budget(dataset: Dataset, recipe: Recipe) -> tuple[Dataset, tuple[str, ...]]:
    """Leave out the samples with too few content tokens.

    Returns:
        the dataset without them, and their keys.

    Raises:
        BudgetError: if they are more than 1%; names them.
    """
    needed = least_content(recipe)
    counts = count_content(dataset, recipe)
    small = tuple(key for key, count in counts.items() if count < needed)
    if len(small) > MAX_DROPPED * len(counts):
        named = ", ".join(f"{key} ({counts[key]})" for key in small[:NAMED])
        more = f" and {len(small) - NAMED} more" if len(small) > NAMED else ""
        raise BudgetError(
            f"{len(small)} of {len(counts)} samples have fewer than the {needed} content tokens that "
            f"objective.num_visible {recipe.objective.num_visible} and num_targets {recipe.objective.num_targets} "
            f"need: {named}{more}. Lower the budgets, or ingest with a geometry that keeps more content (block6)."
        )
    dropped = frozenset(small)
    return replace(dataset, samples=tuple(row for row in dataset.samples if row.key not in dropped)), small


def count_content(dataset: Dataset, recipe: Recipe) -> dict[str, int]:
    """Content tokens of each sample on the recipe's grid, by key.

    `samples.csv` counts them on the full grid; with another grid they are counted from each content box.
    """
    if (recipe.data.pool, recipe.grid, recipe.model.patch) == (1, GRID_SHAPE, PATCH_SHAPE):
        return {row.key: row.content_tokens for row in dataset.samples}
    pool = ThreadPoolExecutor(READERS)  # one after the other, a bucket would take an hour for a cohort
    try:
        metas = pool.map(partial(read_meta, dataset), dataset.samples)
        return {meta.key: int(content_tokens(meta, recipe).sum()) for meta in metas}
    finally:
        pool.shutdown(cancel_futures=True)

"""Reading all of a store, to find out whether it is what was written."""

import hashlib
from pathlib import Path

import numpy as np

from teukenjax.data.progress import progress_bar
from teukenjax.data.store import Split, TokenStore
from teukenjax.data.writer import update_hash
from teukenjax.errors import UserError


def verify(where: str | Path, *, progress: bool = True) -> int:
    """Compares every language of the store at a path or URL with the manifest; its tokens.

    Raises:
      UserError: for the first array that is damaged, or differs.
    """
    store, total = TokenStore.open(where), 0
    store.tokenizer()
    splits = store.manifest.splits
    languages = [(split, name) for split in splits for name in splits[split]]
    with progress_bar(shown=progress) as bar:
        size = sum(4 * store.tokens(split, name) for split, name in languages)
        task = bar.add_task("verifying", total=size)
        for split, language in languages:
            _verify(store, split, language)
            total += store.tokens(split, language)
            bar.update(task, completed=4 * total)
    return total


def _verify(store: TokenStore, split: Split, language: str) -> None:
    counts, state = store.manifest.splits[split][language], hashlib.sha256()
    update_hash(state, store, split, language)
    ends, sizes = store.ends(split, language), store.sizes(split, language)
    wrong = None
    if state.hexdigest()[:16] != counts.sha256:
        wrong = f"the hash of 'ids' is {state.hexdigest()[:16]}, the manifest says {counts.sha256}"
    elif (np.diff(ends, prepend=0) < 1).any() or ends[-1] != counts.tokens:
        wrong = f"'ends' is not a rising list up to {counts.tokens}"
    elif sizes.sum() != counts.bytes:
        wrong = f"'bytes' sums to {sizes.sum()}, the manifest says {counts.bytes}"
    if wrong:
        raise UserError(f"{store.location}: language '{language}' in {split} differs: {wrong}")

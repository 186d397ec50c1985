"""The stream of training: sample ``i`` as a pure function of (seed, mixture, store, ``i``)."""

from teukenjax.data.mixture import Mixture, check_lasts
from teukenjax.data.packing import Sample, make_packing
from teukenjax.data.store import TokenStore
from teukenjax.recipe import DataConfig, Recipe


class Stream:
    """Mixture and packing over one store. Safe to share by threads.

    Args:
      store: where the tokens are.
      data: mixture and packing.
      sequence_length: S.
      seed: of the order; any integer.

    Raises:
      UserError: as ``Mixture`` does.
    """

    def __init__(self, store: TokenStore, data: DataConfig, *, sequence_length: int, seed: int):
        self.sequence_length = sequence_length
        self._packing = make_packing(store, data.packing, sequence_length, segments=data.segments)
        self.segmented = self._packing.segmented
        self.mixture = Mixture(
            data.mix,
            tokens={language: store.tokens("train", language) for language in store.languages},
            windows=self._packing.windows,
            sequence_length=sequence_length,
            seed=seed,
        )

    @classmethod
    def of(cls, recipe: Recipe, store: TokenStore) -> "Stream":
        """The stream of a recipe; a UserError also when the mixture ends before the run does."""
        stream = cls(store, recipe.data, sequence_length=recipe.model.context, seed=recipe.seed)
        check_lasts(stream.mixture, recipe)
        return stream

    def sample(self, index: int) -> Sample:
        """Row ``index``, from 0: see ``packing``; a UserError when its tokens are damaged."""
        return self._packing.read(*self.mixture.window(index))

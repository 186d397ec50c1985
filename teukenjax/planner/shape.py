"""A model as the planner sees it: how many weights, and which products.

Letters as everywhere: D width, L layers, H query heads, K KV heads, N head dim, F FFN inner,
V rows of the vocabulary table. φ is the number of parameters.
"""

from dataclasses import dataclass

from teukenjax.errors import UserError, nearest
from teukenjax.model import padded_vocab
from teukenjax.recipe import ModelConfig

MPT_VOCAB = 50_368
# The GPTs of MosaicML's published benchmark, (D, H, L): head dimension D/H, F = 4 D, tied, learned
# positions, no biases. They reproduce its MFU column to 0.1 %.
MPT = {
    "125m": (768, 12, 12),
    "350m": (1024, 16, 24),
    "760m": (1536, 12, 24),
    "1b": (2048, 16, 24),
    "3b": (2560, 20, 32),
    "7b": (4096, 32, 32),
    "13b": (5120, 40, 40),
    "30b": (7168, 56, 48),
    "70b": (8192, 64, 80),
}


@dataclass(frozen=True)
class Shape:
    """The dimensions that memory and time depend on."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int  # rows of a table, padding included
    gated: bool = True  # SwiGLU has three matrices, GELU two
    tied: bool = True
    norms_everywhere: bool = False  # one before every linear map
    positions: int = 0  # rows of a learned position table

    @classmethod
    def of(cls, config: ModelConfig) -> "Shape":
        """Of a recipe's model, whose vocabulary must be known."""
        return cls(
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            ffn=config.ffn,
            vocab=padded_vocab(config),
            tied=config.tied,
            norms_everywhere=config.norms == "everywhere",
        )

    @classmethod
    def mpt(cls, name: str, sequence: int) -> "Shape":
        """A model of MosaicML's benchmark, such as "7b", trained on sequences of that length.

        Raises:
          UserError: for a name that is not one of theirs.
        """
        key = name.strip().lower().removeprefix("mpt-")
        if key not in MPT:
            raise UserError(f"model '{name}' is not known: {nearest(key, MPT)}")
        D, H, L = MPT[key]
        return cls(D, L, H, H, D // H, 4 * D, MPT_VOCAB, gated=False, positions=sequence)

    @property
    def attention_weights(self) -> int:
        """Of one layer: query and output D·H·N each, key and value D·K·N each."""
        return 2 * self.width * self.head_dim * (self.heads + self.kv_heads)

    @property
    def mlp_weights(self) -> int:
        """Of one layer: D·F, three times if gated, else twice."""
        return (3 if self.gated else 2) * self.width * self.ffn

    @property
    def layer_weights(self) -> int:
        """Of the matrices of all layers. Gains, 1/D of them, are left out."""
        return self.layers * (self.attention_weights + self.mlp_weights)

    @property
    def table_weights(self) -> int:
        """Of vocabulary and position tables."""
        return ((1 if self.tied else 2) * self.vocab + self.positions) * self.width

    @property
    def parameters(self) -> int:
        """φ, of matrices and tables."""
        return self.layer_weights + self.table_weights

    def model_flops(self, sequence, *, full_square: bool = False):
        """FLOPs of training on one token: 6 for each weight that multiplies, and attention.

        Args:
          sequence: S, tokens.
          full_square: count attention as 12·L·H·N·S, as most published tables do; else the causal
            half of that. Those tables also count every table as if it multiplied.
        """
        multiplying = self.layer_weights + self.vocab * self.width
        counted = self.parameters if full_square else multiplying
        square = self.layers * self.heads * self.head_dim * sequence
        return 6 * counted + (12 if full_square else 6) * square

    def matrices(self) -> list[tuple[int, int, int]]:
        """The hidden matrices by shape: (how many, smaller side m, larger side n)."""
        D, L, attended = self.width, self.layers, self.heads * self.head_dim
        shared = self.kv_heads * self.head_dim
        mlp = 3 if self.gated else 2
        found: dict[tuple[int, int], int] = {}
        for count, a, b in [(2 * L, D, attended), (2 * L, D, shared), (mlp * L, D, self.ffn)]:
            key = (min(a, b), max(a, b))
            found[key] = found.get(key, 0) + count
        return [(count, m, n) for (m, n), count in found.items()]

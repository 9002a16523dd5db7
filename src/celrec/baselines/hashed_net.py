"""HashedNets: every single number of the table is hashed to one of a few shared numbers.

The finest sharing there is: two entities have no row in common, but here and there a number, with
hashed signs some of them with the opposite sign. These signs make the errors that sharing brings
cancel on average.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding, too_small
from celrec.baselines.hashing import mixed, multiplier_of
from celrec.errors import check_count


class HashedNetEmbedding(CompressedEmbedding):
    """`torch.nn.Embedding` whose N x D numbers are Z shared ones.

    num_numbers : Z >= 1   numbers that are stored
    signed : multiply each number of the table by a hashed sign, as the paper does
    seed : another one shares otherwise
    other arguments : as in `CompressedEmbedding`

    Source: Chen et al., "Compressing neural networks with the hashing trick", ICML 2015: number
    (i, j) of the table is xi(i, j) w[h(i, j)], with their sign hash xi. Place and sign come from
    different bits of one hash. Applied to a table of embeddings, where they have layers' weights.
    By default there are no signs: on MovieLens-1M likes, the validation AUC with as many numbers as
    8, 64 and 1,024 rows have was 0.615, 0.774 and 0.813 without, and 0.495, 0.512 and 0.734 with.

    >>> table = HashedNetEmbedding(1000, 8, num_numbers=100)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    >>> table
    HashedNetEmbedding(1000, 8, num_numbers=100)
    """

    kind = "hashed-net"
    source = "Chen et al., ICML 2015"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_numbers: int,
        padding_idx: int | None = None,
        *,
        signed: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.signed = bool(signed)
        self.num_numbers = check_count("num_numbers", num_numbers, at_least=1)
        self._multiplier = multiplier_of(seed)
        self.numbers = nn.Parameter(torch.empty(self.num_numbers))
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        num_numbers = num_bytes // 4
        if num_numbers < 1:
            raise too_small(cls.kind, num_bytes, 4)
        return {"num_numbers": num_numbers}

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.numbers, std=std, generator=generator)

    def places_and_signs(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Where the numbers of entities (L,) are stored, int64 (L, D) in [0, Z), and 1 or -1.

        The signs are hashed ones whether the table is signed or not.
        """
        columns = torch.arange(1, self.embedding_dim + 1, device=ids.device)  # 0 is hashed to 0
        hashes = mixed(ids.unsqueeze(1) * self.embedding_dim + columns, self._multiplier)
        return (hashes >> 1) % self.num_numbers, 1 - 2 * (hashes & 1)

    def look_up(self, ids: Tensor) -> Tensor:
        places, signs = self.places_and_signs(ids)
        numbers = self.numbers.index_select(0, places.flatten()).view_as(places)
        return numbers * signs if self.signed else numbers

    def options(self) -> dict[str, Any]:
        return super().options() | {"num_numbers": self.num_numbers, "signed": self.signed}

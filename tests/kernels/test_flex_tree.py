"""FlexAttention on a tree: its tables of blocks against the oracle's mask, and its output."""

import pytest
import torch
from rntp_kernels import TreeAttention, TreeLayout
from rntp_kernels.tree_attention import dense_attention, dense_mask, flex
from torch.nn.attention.flex_attention import BlockMask


def random_forest(seed: int, segments: int, longest: int) -> TreeLayout:
    generator = torch.Generator().manual_seed(seed)

    def draw(bound: int) -> int:
        return int(torch.randint(bound, (), generator=generator))

    lengths, parents, attach = [], [], []
    for segment in range(segments):
        lengths.append(1 + draw(longest))
        parents.append(draw(segment + 1) - 1)
        visible = lengths[parents[-1]] if parents[-1] >= 0 else 0
        attach.append(draw(visible + 1) if draw(3) else visible)
    return TreeLayout(tuple(lengths), tuple(parents), tuple(attach))


def rebuilt(mask: BlockMask) -> torch.Tensor:
    """bool [N, N] as a kernel reads it: whole blocks without asking, others by the mask's rule."""
    length, size = mask.shape[-1], flex.BLOCK
    found = torch.zeros(length, length, dtype=torch.bool)
    rows = torch.arange(size)[:, None]
    for counts, indices, whole in (
        (mask.kv_num_blocks, mask.kv_indices, False),
        (mask.full_kv_num_blocks, mask.full_kv_indices, True),
    ):
        for block, count in enumerate(counts[0, 0].tolist()):
            for other in indices[0, 0, block, :count].tolist():
                r, k = block * size + rows, other * size + rows.T
                seen = mask.mask_mod(torch.tensor(0), torch.tensor(0), r, k)
                part = (
                    slice(block * size, (block + 1) * size),
                    slice(other * size, (other + 1) * size),
                )
                assert not found[part].any()  # no block twice
                found[part] = True if whole else seen
                assert whole or (seen.any() and not seen.all())
    return found


@pytest.mark.parametrize("seed", range(12))
def test_blocks_and_rule_say_what_the_mask_says(seed: int) -> None:
    layout = random_forest(seed, segments=1 + seed, longest=40 if seed % 2 else 260)
    length = flex.bucket(layout.num_tokens) + (flex.BLOCK if seed % 3 == 0 else 0)
    found = rebuilt(flex.block_mask(layout, length, torch.device("cpu")))
    rows = layout.num_tokens
    assert torch.equal(found[:rows, :rows], dense_mask(layout))
    # Padding sees itself, and nobody sees it.
    assert not found[:rows, rows:].any()
    assert torch.equal(found[rows:], torch.eye(length, dtype=torch.bool)[rows:])


def test_a_comb_has_few_blocks_with_a_rule() -> None:
    positions = [128 * k for k in range(1, 9) for _ in range(4)]
    layout = TreeLayout((1024, *[128] * 32), (-1, *[0] * 32), (0, *positions))
    mask = flex.block_mask(layout, flex.bucket(layout.num_tokens), torch.device("cpu"))
    used = -(-layout.num_tokens // flex.BLOCK)
    assert mask.kv_num_blocks[0, 0, :used].tolist() == [1] * used  # the diagonal
    whole = [*range(8), *(p // 128 for p in positions)]
    assert mask.full_kv_num_blocks[0, 0, :used].tolist() == whole


def test_output_on_the_cpu_is_the_oracles() -> None:
    layout = TreeLayout((150, 40, 17, 33), (-1, 0, 1, 0), (0, 61, 40, 0))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 240, 16, generator=generator) for n in (4, 2, 2))
    own = TreeAttention(layout, implementation="flex")(0, q, k, v, 0.3)
    torch.testing.assert_close(own, dense_attention(q, k, v, dense_mask(layout), 0.3))
    with pytest.raises(ValueError, match="has no gradients on the CPU"):
        TreeAttention(layout, implementation="flex")(0, q.requires_grad_(), k, v, 0.3)


def test_thoughts_of_other_lengths_have_the_same_shapes() -> None:
    """All that a compiled kernel is specialised on: lengths, and shapes of tables."""

    def shapes(thought: int) -> list[torch.Size]:
        layout = TreeLayout((1500, *[thought] * 8), (-1, *[0] * 8), (0, *[700] * 8))
        mask = flex.block_mask(layout, flex.bucket(layout.num_tokens), torch.device("cpu"))
        tables = (mask.kv_num_blocks, mask.kv_indices, mask.q_num_blocks, mask.q_indices)
        whole = (mask.full_kv_num_blocks, mask.full_kv_indices, mask.full_q_num_blocks)
        return [torch.Size(mask.seq_lengths), *(t.shape for t in (*tables, *whole))]

    assert shapes(70) == shapes(99)
    assert shapes(70) != shapes(140)


def test_few_lengths_and_little_padding() -> None:
    lengths = {flex.bucket(n) for n in range(1, 40_000)}
    assert len(lengths) <= 32
    for rows in range(512, 40_000, 37):
        assert rows <= flex.bucket(rows) < 1.26 * rows
        assert flex.bucket(rows) % flex.BLOCK == 0

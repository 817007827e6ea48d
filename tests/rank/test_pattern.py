"""The closed forms of what ranks send: exact, and every word depends on its owner and its iteration."""

import pytest

torch = pytest.importorskip("torch")

from probe.rank import pattern  # noqa: E402 - torch first: without it there is nothing to test
from probe.rank.pattern import FORMATS, dense, expected, owners, routed, sent, signature  # noqa: E402

INDEX = torch.arange(0, 5000, dtype=torch.int64)
RANKS = [1, 2, 3, 4, 255, 256, 257, 700]


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("kind", ["routed", "dense"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_sum_in_any_order_is_the_closed_form(name: str, kind: str, ranks: int) -> None:
    form = FORMATS[name]
    index = INDEX if ranks < 10 else INDEX[:600]
    parts = [sent(kind, form, index, rank, ranks, 7) for rank in range(ranks)]
    wanted = expected(kind, form, index, ranks, 7).view(form.word)
    forwards, backwards = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
    for part in parts:
        forwards += part
    for part in reversed(parts):
        backwards += part
    assert torch.equal(forwards.view(form.word), wanted)
    assert torch.equal(backwards.view(form.word), wanted)


@pytest.mark.parametrize("start", [1, 7, 4990])
@pytest.mark.parametrize("ranks", [1, 3, 4, 700])
@pytest.mark.parametrize("kind", ["routed", "dense"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_later_part_is_what_the_whole_holds_there(name: str, kind: str, ranks: int, start: int) -> None:
    """Large buffers are made and compared in parts."""
    form = FORMATS[name]
    later = INDEX[start:]
    for part, whole in (
        (sent(kind, form, later, ranks - 1, ranks, 7), sent(kind, form, INDEX, ranks - 1, ranks, 7)),
        (expected(kind, form, later, ranks, 7), expected(kind, form, INDEX, ranks, 7)),
    ):
        assert torch.equal(part.view(form.word), whole[start:].view(form.word))


@pytest.mark.parametrize("name", FORMATS)
def test_routed_words_use_every_bit_of_sign_and_mantissa(name: str) -> None:
    form = FORMATS[name]
    words = pattern.routed_words(form, INDEX, 1).to(torch.int64)
    for bit in [*range(form.mantissa_bits or 64)]:
        seen = ((words >> bit) & 1).unique()
        assert len(seen) == 2, bit
    if form.mantissa_bits:
        values = words.to(form.word).view(form.dtype).double()
        assert bool((values > 0).any())
        assert bool((values < 0).any())
        assert bool(((values.abs() >= 2**-7) & (values.abs() < 4)).all())


def test_each_index_has_one_owner_who_alone_sends_something() -> None:
    form = FORMATS["fp32"]
    sending = torch.stack([routed(form, INDEX, rank, 5, 3) != 0 for rank in range(5)])
    assert bool((sending.sum(dim=0) == 1).all())
    assert torch.equal(sending.to(torch.int64).argmax(dim=0), owners(INDEX, 5, 3))


@pytest.mark.parametrize("kind", ["routed", "dense"])
def test_the_data_of_the_last_iteration_is_wrong_in_this_one(kind: str) -> None:
    form = FORMATS["fp32"]
    assert not torch.equal(expected(kind, form, INDEX, 4, 1), expected(kind, form, INDEX, 4, 2))


def test_dense_entries_are_of_a_block_that_bf16_can_add_up() -> None:
    form = FORMATS["bf16"]
    sending = sum((dense(form, INDEX[:600], rank, 700, 0) != 0).to(torch.int64) for rank in range(700))
    assert int(torch.as_tensor(sending).max()) <= pattern.BLOCK


def test_signatures_differ_by_rank_and_iteration() -> None:
    found = {tuple(signature(rank, 8, turn, "cpu").tolist()) for rank in range(8) for turn in range(4)}
    assert len(found) == 32

"""Baselines of codes, counted by hand."""

import pytest
import torch

from whalesong.metrics.code_baselines import (
    NOTHING,
    CodeBaselines,
    copy_loop,
    find_loop,
    matches,
    repeat_last,
)


def test_the_last_code_is_repeated_from_the_prompt_on() -> None:
    codes = torch.tensor([[1, 2, 2, 3, 3]])
    assert repeat_last(codes, 2).tolist() == [[2, 2, 3]]


def test_a_loop_is_played_on_from_where_the_prompt_ends() -> None:
    codes = torch.tensor([[1, 2, 3] * 4, [4, 5, 6] * 4])
    assert find_loop(codes[:, :7]) == 3
    unknown = codes.clone()
    unknown[:, 7:] = 9
    assert copy_loop(unknown, 7).tolist() == codes[:, 7:].tolist()


def test_a_loop_of_which_little_is_heard_twice_is_not_believed() -> None:
    # The last frame equals the first, a lag of 8; a lag of 3 is right in 4 of 6 frames.
    prompt = torch.tensor([[1, 2, 3, 1, 2, 3, 7, 8, 1]])
    assert find_loop(prompt) == 3


def test_the_shorter_of_two_equal_loops_is_found() -> None:
    assert find_loop(torch.tensor([[1, 2] * 6])) == 2
    assert find_loop(torch.tensor([[5] * 12])) == 1


def test_a_prompt_of_two_frames_is_enough_to_copy() -> None:
    assert copy_loop(torch.tensor([[3, 4, 0, 0]]), 2).tolist() == [[4, 4]]


def test_the_bigram_foretells_what_mostly_followed_in_training() -> None:
    train = [torch.tensor([[0, 1, 0, 1, 0, 2]]), torch.tensor([[2, 2, 2, 1]])]
    baselines = CodeBaselines(train, codebook_size=4)
    # 0 -> 1, 1 -> 0, 2 -> 2; 3 never occurred, and what follows most often is 1.
    assert baselines.bigram(torch.tensor([[0, 1, 2, 3, 0]]), 1).tolist() == [[1, 0, 2, 1]]


def test_the_level_below_foretells_all_quantizers_but_the_first() -> None:
    train = [torch.tensor([[0, 0, 0, 1], [2, 2, 1, 1], [0, 0, 1, 1]])]
    baselines = CodeBaselines(train, codebook_size=3)
    foretold = baselines.level_below(torch.tensor([[0, 1, 0], [2, 1, 1], [0, 0, 0]]), 1)
    assert foretold.tolist() == [[NOTHING, NOTHING], [1, 2], [1, 1]]


def test_accuracies_count_all_codes_of_all_targets_alike() -> None:
    train = [torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]])]
    clips = [
        (torch.tensor([[0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0]]), 4),
        (torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 1, 1]]), 3),
    ]
    found = CodeBaselines(train, codebook_size=2).accuracies(clips)
    assert found["repeat"] == pytest.approx([1 / 4, 2 / 4])
    assert found["bigram"] == pytest.approx([3 / 4, 2 / 4])
    assert found["level below"] == [None, pytest.approx(2 / 4)]
    assert found["loop copy"] == pytest.approx([3 / 4, 4 / 4])


def test_matches_leave_out_what_is_not_foretold() -> None:
    foretold = torch.tensor([[NOTHING, NOTHING], [NOTHING, 3], [1, 2]])
    assert matches([(foretold, torch.tensor([[0, 0], [0, 3], [1, 0]]))]) == [None, 1.0, 0.5]


def test_nothing_is_learned_from_nothing() -> None:
    with pytest.raises(ValueError, match="`train` must hold at least one clip"):
        CodeBaselines([], codebook_size=2)

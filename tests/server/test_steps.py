"""Counting iterations, as the glossary's 'step' says."""

from __future__ import annotations

from modscope_server.runtime.steps import StepCounter


def test_one_optimizer_counts_each_step_at_its_post_hook() -> None:
    steps = StepCounter(1)
    for expected in range(1, 4):
        steps.forward_began()
        assert steps.count == expected - 1
        steps.optimizer_stepped(1)
        assert steps.count == expected
        assert steps.complete


def test_accumulation_counts_optimizer_steps_not_forwards() -> None:
    steps = StepCounter(1)
    for _ in range(3):
        for _ in range(4):
            steps.forward_began()
        steps.optimizer_stepped(1)
    assert steps.count == 3


def test_two_optimizers_in_one_iteration_count_once_and_the_last_completes_it() -> None:
    steps = StepCounter(2)
    for expected in range(1, 4):
        steps.forward_began()
        steps.optimizer_stepped(1)
        assert not steps.complete
        assert steps.begun
        steps.optimizer_stepped(2)
        assert steps.complete
        assert steps.count == expected


def test_the_number_of_optimizers_is_learned_from_the_iteration_before() -> None:
    steps = StepCounter(2)
    steps.forward_began()
    steps.optimizer_stepped(1)
    assert not steps.complete
    steps.forward_began()
    steps.optimizer_stepped(2)
    assert steps.complete


def test_a_mark_after_an_optimizer_does_not_count_twice() -> None:
    steps = StepCounter(1)
    for expected in range(1, 4):
        steps.forward_began()
        steps.optimizer_stepped(1)
        steps.mark()
        assert steps.count == expected


def test_marks_alone_count_with_and_without_forwards() -> None:
    with_forwards, without = StepCounter(), StepCounter()
    for _ in range(3):
        with_forwards.forward_began()
        with_forwards.mark()
        without.mark()
    assert with_forwards.count == without.count == 3


def test_without_forwards_the_same_optimizer_again_is_a_new_iteration() -> None:
    steps = StepCounter(2)
    for _ in range(3):
        steps.optimizer_stepped(1)
        steps.optimizer_stepped(2)
    assert steps.count == 3
    marked = StepCounter(1)
    for _ in range(3):
        marked.optimizer_stepped(1)
        marked.mark()
    assert marked.count == 3


def test_steps_inside_backward_complete_with_the_next_forward() -> None:
    steps = StepCounter(2)
    for expected in range(3):
        steps.forward_began()
        assert steps.count == expected
        steps.stepped_inside_backward()
        steps.stepped_inside_backward()


def test_a_step_inside_backward_belongs_to_the_iteration_that_is_under_way() -> None:
    steps = StepCounter(1)
    for expected in range(1, 4):
        steps.forward_began()
        assert steps.of_backward == expected
        steps.stepped_inside_backward()
        steps.optimizer_stepped(1)
        assert steps.of_backward == steps.count == expected

"""Loops of every kind are rewound: they go on, and draw the same batches and values again."""

from __future__ import annotations

import hashlib

import pytest
import torch

from modscope_client import Client, connect
from tests.end_to_end.loops import KINDS, Loop
from tests.end_to_end.rewinding import Rewinding, passes
from tests.end_to_end.serving import TIMEOUT, raw, running_loop, until

STEPS = 20
_BY_THEIR_OWN_COUNT = ("evaluation between", "scaled")
"""Kinds that do another thing every few iterations, by a count of their own."""
_BATCH_BEFORE = ("in backward",)
"""Kinds whose end is seen at the next forward, when its batch has been drawn."""


class Recorded:
    """A loop whose parameters are hashed after each iteration."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.seen: list[tuple[int, str]] = []

    def __call__(self) -> None:
        self.loop()
        hasher = hashlib.sha256()
        for model in self.loop.models.values():
            for tensor in (*model.parameters(), *model.buffers()):
                hasher.update(raw(tensor))
        self.seen.append((self.steps, hasher.hexdigest()))

    @property
    def steps(self) -> int:
        return next(iter(self.loop.models.values())).steps()

    def after(self, step: int, rewinds: int) -> list[str]:
        """Hashes of the iterations after this step, when the loop had been sent back so often."""
        counts = [count for count, _ in self.seen]
        back = [0, *(at for at in range(1, len(counts)) if counts[at] < counts[at - 1])]
        if len(back) <= rewinds:
            return []
        return [digest for count, digest in self.seen[back[rewinds] :] if count > step][:STEPS]


@pytest.mark.parametrize("kind", KINDS)
def test_loops_of_every_kind_are_rewound(kind: str) -> None:
    torch.manual_seed(0)
    loop = KINDS[kind]()
    recorded = Recorded(loop)
    with loop.attach() as scope, connect(scope.address, token=scope.token, timeout=TIMEOUT) as client:
        model = client.model(next(iter(loop.models)))
        with running_loop(recorded):
            until(lambda: scope.step_count > 10, "some steps")
            snapshot = model.save_snapshot("a")
            until(lambda: len(recorded.after(snapshot.step, 0)) == STEPS, "the first pass")
            operation = model.restore_snapshot("a")
            until(lambda: len(recorded.after(snapshot.step, 1)) == STEPS, "the second pass")
    assert not [note for note in operation.notes if "was taken" in note]
    if kind not in (*_BY_THEIR_OWN_COUNT, *_BATCH_BEFORE):
        assert recorded.after(snapshot.step, 0) == recorded.after(snapshot.step, 1)


def pause(client: Client, loop: Rewinding) -> int:
    """The step at whose end the loop stands now. A pause alone may stop it as late as at its next forward."""
    client.run.pause()
    client.run.step(1)
    assert client.run.status().state == "paused"
    return loop.scope.step_count


def test_a_paused_run_is_saved_and_rewound_and_goes_on_as_it_did() -> None:
    loop = Rewinding("AdamW and LambdaLR")
    with loop.attach() as scope, connect(scope.address, token=scope.token, timeout=TIMEOUT) as client:
        model = client.model()
        with running_loop(loop):
            until(lambda: scope.step_count > 10, "some steps")
            step = pause(client, loop)
            assert model.save_snapshot("a").step == step
            client.run.resume()
            until(lambda: scope.step_count > step + STEPS, "the first pass")
            pause(client, loop)
            operation = model.restore_snapshot("a")
            assert scope.step_count == step
            client.run.resume()
            until(lambda: len(passes(loop.losses)) == 2 and len(passes(loop.losses)[1]) > STEPS, "the second")
    first, second = passes(loop.losses)
    assert not [note for note in operation.notes if "was taken" in note]
    assert [loss for at, loss in first if at >= step][:STEPS] == [loss for _, loss in second][:STEPS]

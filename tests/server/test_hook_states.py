"""Each hook says whether it has fired, and where it cannot, why; PyTorch's own hooks are the witness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modscope_server.runtime.hook_states import HookState
from modscope_server.runtime.hooks import Watch
from tests.server.compiled_support import ALL, Backend, Rig, rig


def told(here: Rig, watch: Watch) -> dict[tuple[str, str], HookState]:
    return {(hook.path, hook.kind): hook for hook in here.hooks.states(here.registered, watch)}


def witness(module: nn.Module) -> list[str]:
    """What PyTorch's own hooks on the module have seen."""
    seen: list[str] = []
    module.register_forward_pre_hook(lambda *rest: seen.append("forward_pre"))
    module.register_forward_hook(lambda *rest: seen.append("forward"))
    module.register_full_backward_pre_hook(lambda *rest: seen.append("backward_pre"))
    module.register_full_backward_hook(lambda *rest: seen.append("backward"))
    return seen


class Net(nn.Module):
    """One layer is called; the other is used as `way` says."""

    def __init__(self, way: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 3)
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.way(self.head, self.body(x))


def not_at_all(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x


def through_forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module.forward(x)  # type: ignore[no-any-return, operator]


def through_its_weights(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, module.weight)  # type: ignore[arg-type]


def detached(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x + module(x).detach()


def without_grad(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y = module(x)
    return x + y


def called(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module(x)  # type: ignore[no-any-return]


def trainer(model: nn.Module) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 3, requires_grad=True)).sum().backward()
        optimizer.step()

    return optimizer, step


def test_a_hook_is_armed_until_it_has_fired() -> None:
    model = Net(called)
    optimizer, step = trainer(model)
    with rig(model, optimizer) as here:
        step()
        watch = here.watch(glob="head", kinds=ALL)
        assert {(hook.state, hook.reason) for hook in told(here, watch).values()} == {("armed", "")}
        step()
        step()
        states = told(here, watch)
        assert list(states) == [("head", kind) for kind in ALL]
        assert {(hook.state, hook.fired, hook.last_step, hook.reason) for hook in states.values()} == {
            ("fired", 2, 2, "")
        }
        assert all(hook.watch_ids == (watch.subscription.id,) for hook in states.values())
        late = here.watch(glob="head")
        assert told(here, late)["head", "forward"].state == "armed"


BACKWARD = ("backward_pre", "backward")
DIRECT = "called as module.forward(...), or its weights are used directly"


@pytest.mark.parametrize(
    ("way", "kinds", "reason", "sees"),
    [
        (not_at_all, ALL, "never called since step 1", set()),
        (through_forward, ALL, DIRECT, set()),
        (through_its_weights, ALL, DIRECT, set()),
        (without_grad, BACKWARD, "called without gradients only", {"forward_pre", "forward"}),
        (detached, BACKWARD, "no gradient has come: the loss does not use", {"forward_pre", "forward"}),
    ],
)
def test_a_module_that_is_not_called_or_gets_no_gradient(
    way: Callable[..., torch.Tensor], kinds: tuple[str, ...], reason: str, sees: set[str]
) -> None:
    model = Net(way)
    seen = witness(model.head)
    optimizer, step = trainer(model)
    with rig(model, optimizer) as here:
        step()
        watch = here.watch(kinds=ALL)
        # Half an iteration is too early to say.
        loss = model(torch.ones(2, 3, requires_grad=True)).sum()
        states = told(here, watch)
        assert {states["head", kind].state for kind in kinds} == {"armed"}
        loss.backward()
        optimizer.step()
        for _ in range(10):
            told(here, watch)
            step()
        states = told(here, watch)
        for kind in ALL:
            assert states["body", kind].state == "fired"
            hook = states["head", kind]
            if kind in kinds:
                assert (hook.state, hook.fired, hook.last_step) == ("blind", 0, None)
                assert hook.reason.startswith(reason)
            else:
                assert (hook.state, hook.reason) == ("fired", "")
        assert set(seen) == sees
        # Nothing is left on its parameters.
        assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
        model.way = called
        step()
        states = told(here, watch)
        assert {(states["head", kind].state, states["head", kind].reason) for kind in ALL} == {("fired", "")}


def test_parameters_that_a_called_module_shares_are_no_evidence() -> None:
    model = Net(not_at_all)
    model.head.weight, model.head.bias = model.body.weight, model.body.bias
    optimizer, step = trainer(model)
    with rig(model, optimizer) as here:
        watch = here.watch(glob="head")
        for _ in range(5):
            step()
            told(here, watch)
        assert model.head.weight.grad is not None
        assert told(here, watch)["head", "forward"].reason == "never called since step 0"


class Blocks(nn.Module):
    """One block is gone around; its layer is called."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(3, 3))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0].forward(x)  # type: ignore[no-any-return]


def test_a_module_whose_children_alone_are_called() -> None:
    model = Blocks()
    seen, inner = witness(model.blocks[0]), witness(model.blocks[0][0])
    optimizer, step = trainer(model)
    with rig(model, optimizer) as here:
        watch = here.watch()
        step()
        states = {path: hook for (path, _), hook in told(here, watch).items()}
        assert states["blocks"].reason == "never called: a ModuleList has no forward"
        assert states["blocks.0"].reason.startswith("called as module.forward(...), or passed by")
        assert (states[""].state, states["blocks.0.0"].state) == ("fired", "fired")
        assert not seen and inner


def test_what_attention_never_calls() -> None:
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0)
    seen = witness(model.self_attn.out_proj)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with rig(model, optimizer) as here:
        watch = here.watch(glob="*out_proj")
        assert "nn.MultiheadAttention uses these without calling them: 'self_attn.out_proj'" in (
            watch.subscription.notes
        )
        assert told(here, watch)["self_attn.out_proj", "forward"].state == "armed"
        for _ in range(2):
            model(torch.randn(2, 3, 4)).sum().backward()
            optimizer.step()
        hook = told(here, watch)["self_attn.out_proj", "forward"]
        assert (hook.state, hook.reason) == (
            "blind",
            "never called: nn.MultiheadAttention uses its weights directly",
        )
        assert seen == [] and model.self_attn.out_proj.weight.grad is not None


def test_hooks_switch_the_fused_path_off_and_say_so() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)  # type: ignore[no-any-return]

    model = Outer().eval()
    x = torch.randn(2, 3, 4)

    def kernels() -> set[str]:
        with torch.no_grad(), torch.profiler.profile() as profile:
            model(x)
        return {event.name for event in profile.events()}

    fused = "aten::_transformer_encoder_layer_fwd"
    with rig(model) as here:
        assert fused in kernels()
        watch = here.watch(glob="layer.linear1")
        assert any("fused path" in note and "'layer'" in note for note in watch.subscription.notes)
        assert fused not in kernels()
        assert told(here, watch)["layer.linear1", "forward"].state == "fired"
        here.stop(watch)
        assert fused in kernels()


@pytest.mark.parametrize(("phase", "seen"), [("evaluation", "training"), ("training", "evaluation")])
def test_a_phase_that_never_comes(phase: str, seen: str) -> None:
    model = Net(called).train(seen == "training")
    optimizer, step = trainer(model)
    with rig(model, optimizer) as here:
        watch = here.watch(glob="head", phase=phase)
        assert told(here, watch)["head", "forward"].state == "armed"
        step()
        step()
        hook = told(here, watch)["head", "forward"]
        assert (hook.state, hook.fired, hook.reason) == ("blind", 0, f"called in {seen} only")
        model.train(seen != "training")
        step()
        assert told(here, watch)["head", "forward"].state == "fired"


def test_outputs_that_require_no_gradient() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 1)
            self.first.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))  # type: ignore[no-any-return]

    model = Frozen()
    seen: list[Any] = []
    model.first.register_forward_hook(lambda m, args, out: seen.append(out.requires_grad))
    optimizer = torch.optim.SGD(model.second.parameters(), lr=0.1)
    with rig(model, optimizer) as here:
        watch = here.watch(kinds=("backward",))
        for _ in range(2):
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
        states = told(here, watch)
        assert states["first", "backward"].reason == "no gradient flows: none of its outputs requires one"
        assert states["second", "backward"].state == "fired"
        assert seen == [False, False]


def test_a_hook_that_cannot_see_all_says_so() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    optimizer, step = trainer(model)
    with rig(model, optimizer) as here:
        watch = here.watch(kinds=BACKWARD)
        step()
        states = told(here, watch)
        assert {hook.state for hook in states.values()} == {"fired"}
        reasons = {key: hook.reason for key, hook in states.items() if hook.reason}
        assert reasons == {("1", "backward"): "in-place module: the gradient of its input cannot be had"}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_script_module_takes_no_hooks() -> None:
    scripted = torch.jit.script(nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match="not supported on ScriptModules"):
        scripted.register_forward_hook(lambda *rest: None)
    model = nn.Sequential(nn.Linear(3, 3), scripted)
    with rig(model) as here:
        watch = here.watch()
        states = told(here, watch)
        assert (states["1", "forward"].state, states["1", "forward"].reason) == (
            "blind",
            "a ScriptModule takes no hooks",
        )
        assert states["0", "forward"].state == "armed"


def test_another_module_at_the_path() -> None:
    model = Net(called)
    optimizer, step = trainer(model)
    with rig(model, optimizer) as here:
        watch = here.watch()
        step()
        model.head = nn.Linear(3, 3)
        seen = witness(model.head)
        step()
        hook = told(here, watch)["head", "forward"]
        assert (hook.state, hook.reason) == ("blind", "another module is at this path now")
        assert (hook.fired, hook.last_step) == (1, 0) and "forward" in seen


def test_faults_of_modscopes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("ours")

    model = nn.Sequential(nn.Linear(3, 3))
    monkeypatch.setattr("modscope_server.runtime.captured.reduced_later", broken)
    with rig(model) as here:
        watch = here.watch(glob="0")
        for _ in range(4):
            model(torch.ones(1, 3))
        hook = told(here, watch)["0", "forward"]
        assert hook.state == "blind" and hook.reason.startswith(
            "switched off after 3 faults of modscope's own"
        )


def test_a_served_model_tells_after_one_forward() -> None:
    model = Net(not_at_all).eval()
    with rig(model) as here:
        watch = here.watch()
        assert {hook.state for hook in told(here, watch).values()} == {"armed"}
        model(torch.ones(1, 3))
        states = told(here, watch)
        assert (states["body", "forward"].state, states["head", "forward"].state) == ("fired", "blind")


def test_an_evaluation_between_two_steps_tells_after_two_forwards() -> None:
    model = Net(called)
    optimizer, step = trainer(model)
    with rig(model, optimizer) as here:
        step()
        model.eval()
        watch = here.watch(glob="head", kinds=("backward",))
        states = []
        for _ in range(3):
            states.append(told(here, watch)["head", "backward"])
            with torch.no_grad():
                model(torch.ones(1, 3))
        assert [hook.state for hook in states] == ["armed", "armed", "blind"]
        assert states[-1].reason == "called without gradients only, as in evaluation"


def test_a_watch_of_steps_to_come_waits_for_them() -> None:
    model = Net(called)
    optimizer, step = trainer(model)
    with rig(model, optimizer) as here:
        watch = here.watch(glob="head", start=3)
        step()
        step()
        hook = told(here, watch)["head", "forward"]
        assert (hook.state, hook.reason) == ("armed", "it begins at step 3")
        sampled = here.watch(glob="head", kinds=("backward",), every=10)
        for _ in range(4):
            step()
        assert told(here, watch)["head", "forward"].state == "fired"
        assert told(here, sampled)["head", "backward"].state == "armed"


def test_compiled_code_that_a_stance_of_the_program_keeps() -> None:
    torch._dynamo.reset()
    model = Net(called)
    model.compile(backend=Backend("eager"))
    seen: list[object] = []
    optimizer, step = trainer(model)
    with rig(model, optimizer) as here, torch.compiler.set_stance("eager_on_recompile"):
        with torch.compiler.set_stance("default"):
            step()
        model.head.register_forward_hook(lambda *rest: seen.append(rest))
        watch = here.watch(glob="head")
        step()
        step()
        hook = told(here, watch)["head", "forward"]
        assert hook.state == "blind"
        assert hook.reason == (
            "it is compiled, and compiled code skips hooks that came after it: the program has set the "
            "stance 'eager_on_recompile' of torch.compiler.set_stance, which is left alone"
        )
        assert seen == []

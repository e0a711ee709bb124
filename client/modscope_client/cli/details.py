"""One module or tensor whole, as text: a heading, its facts, and for a module what print gives."""

from __future__ import annotations

from collections.abc import Iterable

from modscope_client.cli.messages import styled
from modscope_client.cli.text import number, one_line, path_text, plural, shape_text
from modscope_client.types import BufferInfo, ModuleInfo, ParameterInfo, Stats, TensorDetail

__all__ = ["facts_text", "module_text", "tensor_text"]


def facts_text(heading: str, facts: Iterable[tuple[str, str]]) -> str:
    """A heading over aligned facts; a fact without text is left out."""
    shown = [(name, text) for name, text in facts if text]
    width = max((len(name) for name, _ in shown), default=0)
    lines = [f"  {styled(name.ljust(width), dim=True)}  {text}" for name, text in shown]
    return "".join(f"{line}\n" for line in (heading, *lines))


def module_text(module: ModuleInfo) -> str:
    """A module: its facts, then repr(module) as print shows it."""
    heading = f"{styled(path_text(module.path), bold=True)}  {styled(one_line(module.type), fg='cyan')}"
    facts = (
        ("class", one_line(module.qualified_type)),
        ("parameters", _share(module)),
        ("children", str(module.children)),
        ("mode", "train" if module.training else "eval"),
        ("also at", ", ".join(map(one_line, module.aliases))),
        ("wrapped in", " in ".join(reversed(module.wrappers))),
        ("raw path", one_line(module.raw_path) if module.raw_path != module.path else ""),
    )
    shown = "\n".join(map(one_line, (module.repr or "").split("\n")))
    return facts_text(heading, facts) + (f"\n{shown}\n" if shown else "")


def _share(module: ModuleInfo) -> str:
    if not module.parameters:
        return "none"
    if module.trainable_parameters == module.parameters:
        return f"{module.parameters:,}, all trainable"
    if not module.trainable_parameters:
        return f"{module.parameters:,}, all frozen"
    return f"{module.parameters:,}, {module.trainable_parameters:,} of them trainable"


def tensor_text(detail: TensorDetail) -> str:
    """A parameter or buffer: its facts, statistics and digest."""
    info = detail.info
    is_buffer = isinstance(info, BufferInfo)
    heading = (
        f"{styled(path_text(info.path), bold=True)}  {styled(info.dtype, fg='cyan')} {shape_text(info.shape)}"
    )
    facts = (
        ("kind", _kind(info)),
        ("elements", f"{info.numel:,}"),
        ("module", one_line(info.module_type)),
        ("trainable", "" if is_buffer else "yes" if info.requires_grad else "no (frozen)"),
        ("gradient", "present" if info.has_grad else "" if is_buffer else "none"),
        ("optimizer", _holder(info.optimizer) if not is_buffer or info.optimizer is not None else ""),
        ("device", info.device),
        ("tied with", ", ".join(map(one_line, info.tied_with))),
        ("raw path", one_line(info.raw_path) if info.raw_path != info.path else ""),
        ("unreadable", info.unreadable),
        *_stats_facts(info.stats),
        ("digest", detail.digest or ""),
        ("step", f"{detail.step:,}"),
    )
    return facts_text(heading, facts)


def _holder(group: int | None) -> str:
    return "none holds it" if group is None else f"group {group}"


def _kind(info: ParameterInfo) -> str:
    if not isinstance(info, BufferInfo):
        return "parameter"
    return "buffer" if info.persistent else "buffer, not part of the state_dict"


def _stats_facts(stats: Stats | None) -> list[tuple[str, str]]:
    if stats is None:
        return []
    special = [plural(stats.zeros, "zero"), f"{stats.nan:,} nan", f"{stats.inf:,} inf"]
    measured = [(name, getattr(stats, name)) for name in ("mean", "std", "min", "max", "norm")]
    return [
        *((name, number(amount, 6)) for name, amount in measured if amount is not None),
        ("special", ", ".join(special)),
    ]

"""Whether a parameter can be trained, and have that changed."""

from __future__ import annotations

from modscope_server.errors import DtypeMismatch, NotMaterialized
from modscope_server.inspection.records import LocatedTensor
from modscope_server.inspection.tensors import dtype_name

__all__ = ["check_dtype", "check_leaf"]


def check_leaf(one: LocatedTensor, consequence: str) -> None:
    """Raises NotMaterialized, with the consequence, for what autograd does not treat as a parameter."""
    tensor = one.tensor
    if tensor.is_inference() or not tensor.is_leaf:
        why = "was made under inference_mode" if tensor.is_inference() else "is computed from others"
        raise NotMaterialized(f"{one.path} {why}: {consequence}", hint="select the parameters behind it")


def check_dtype(one: LocatedTensor) -> None:
    """Raises DtypeMismatch for a dtype that takes no gradient."""
    if not (one.tensor.is_floating_point() or one.tensor.is_complex()):
        raise DtypeMismatch(
            f"{one.path} is {dtype_name(one.tensor)}, which takes no gradient",
            hint="select float or complex parameters only",
            field="glob",
        )

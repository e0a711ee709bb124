"""Initialising parameters anew: a closed table of schemes, planned and checked before anything changes."""

from __future__ import annotations

from modscope_server.reinit.carrying_out import apply
from modscope_server.reinit.change import plan_reinitialize
from modscope_server.reinit.plan import Action, Plan, Step, plan
from modscope_server.reinit.schemes import RESET_PARAMETERS, SCHEMES

__all__ = ["RESET_PARAMETERS", "SCHEMES", "Action", "Plan", "Step", "apply", "plan", "plan_reinitialize"]

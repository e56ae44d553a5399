"""Exact splitting: unchanged networks on activations that are never whole."""

from maisi.splitting.execute import kept_between_calls
from maisi.splitting.plan import MemoryPlan, plan_memory, run_split
from maisi.splitting.ranks import Ranks
from maisi.splitting.slabs import SlabTensor, gather

__all__ = ["MemoryPlan", "Ranks", "SlabTensor", "gather", "kept_between_calls", "plan_memory", "run_split"]

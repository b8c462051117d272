"""How Kubernetes scales a pool by an external metric: the rule of its HorizontalPodAutoscaler.

Source: kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale ("Algorithm
details"): ``ceil(sum / target)`` for a target that is an average value, unchanged within a
tolerance of a tenth, and on the way down the highest of what was wanted in a window before.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

TOLERANCE = 0.1


@dataclass
class Autoscaler:
    """Says how many replicas there should be. Pure: the caller brings the clock."""

    least: int
    most: int
    stabilization_s: float = 300.0  # Kubernetes' default
    _wanted: deque[tuple[float, int]] = field(default_factory=deque)

    def decide(self, now_s: float, replicas: int, total: float, target: float) -> int:
        """`total` is the metric's sum over the pool, `target` what one replica is to have."""
        share = total / (target * replicas) if replicas else math.inf
        wanted = replicas if abs(share - 1.0) <= TOLERANCE else math.ceil(total / target)
        self._wanted.append((now_s, wanted))
        while self._wanted[0][0] < now_s - self.stabilization_s:
            self._wanted.popleft()
        if wanted < replicas:
            wanted = min(replicas, max(each for _, each in self._wanted))
        return max(self.least, min(self.most, wanted))

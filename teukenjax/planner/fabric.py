"""How fast a group of devices exchanges bytes, inside nodes and between them."""

from dataclasses import dataclass

import numpy as np

from teukenjax.hardware import Hardware
from teukenjax.planner.plans import Plans
from teukenjax.planner.software import FAST_SHARE, NETWORK_SHARE
from teukenjax.units import GIGA


@dataclass(frozen=True)
class Group:
    """How one mesh axis lies on nodes, as seconds per byte of a whole array; arrays [P].

    With m members on n nodes, in-node rate b and network rate B of the node, and c groups that
    share a node at the same time:

        fast     (m − 1)/m / b           every device receives all the others' pieces
        network  c·(n − 1)/n / B         a piece enters a node once, and is spread inside it

    Source: derived; for the node's aggregate rate see Mosaic's 70B on 32 A100 80 GB, which exceeds
    the roof of a per-device share 1.4 times.
    """

    fast_s_per_byte: np.ndarray
    network_s_per_byte: np.ndarray

    @classmethod
    def lying(cls, members: np.ndarray, stride: np.ndarray, hw: Hardware) -> "Group":
        """Members that are ``stride`` devices apart, nodes being filled in order."""
        node = hw.node
        inside = np.clip(node.devices // stride, 1, members)
        nodes = members / inside
        sharing = np.minimum(node.devices, stride * members) / inside
        fast = np.where(inside > 1, (members - 1) / members, 0.0)
        network = sharing * (nodes - 1) / nodes
        return cls(
            fast / (FAST_SHARE * node.fast_gb_per_s * GIGA),
            network / (NETWORK_SHARE * node.network_gb_per_s * GIGA),
        )

    @classmethod
    def tensor(cls, plans: Plans, hw: Hardware) -> "Group":
        """The innermost axis: neighbours."""
        return cls.lying(plans.tensor, np.ones_like(plans.tensor), hw)

    @classmethod
    def fsdp(cls, plans: Plans, hw: Hardware) -> "Group":
        """Every ``tensor``-th device."""
        return cls.lying(plans.fsdp, plans.tensor, hw)

    @classmethod
    def replica(cls, plans: Plans, hw: Hardware) -> "Group":
        """The outermost axis."""
        return cls.lying(plans.replica, plans.tensor * plans.fsdp, hw)

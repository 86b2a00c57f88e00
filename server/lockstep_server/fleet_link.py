"""The link to the fleet: what the attached fleet has, and the orders it has yet to get."""

import asyncio
from collections.abc import AsyncIterator

from lockstep_proto.channels import FLEET_LEASE_S
from lockstep_proto.v1 import training_pb2

STOOD_STILL_S = 1.0  # a lease that is looked at so late says nothing of the fleet, but that this process stood still


class Attachment:
    """One fleet's stream. Orders that were not taken yet are replaced by newer ones. Silence for a lease closes it."""

    def __init__(self) -> None:
        self.replaced = False
        self.silent = False
        self._lease = self._new_lease()
        self._orders: training_pb2.FleetOrders | None = None
        self._closed = False
        self._changed = asyncio.Event()

    def put(self, orders: training_pb2.FleetOrders) -> None:
        """Send these orders next."""
        self._orders = orders
        self._changed.set()

    def heard(self) -> None:
        """Renew the lease."""
        self._lease.cancel()
        if not self._closed:
            self._lease = self._new_lease()

    def close(self) -> None:
        """Nothing follows."""
        self._lease.cancel()
        self._closed = True
        self._changed.set()

    async def orders(self) -> AsyncIterator[training_pb2.FleetOrders]:
        """The orders, newest only, until the attachment is closed."""
        while not self._closed:
            self._changed.clear()
            if self._orders is not None:
                orders, self._orders = self._orders, None
                yield orders
            else:
                await self._changed.wait()

    def _new_lease(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(FLEET_LEASE_S, self._lease_over)

    def _lease_over(self) -> None:
        if asyncio.get_running_loop().time() - self._lease.when() > STOOD_STILL_S:
            self.heard()
            return
        self.silent = True
        self.close()


class FleetLink:
    """The one fleet that counts: the newest that attached."""

    def __init__(self) -> None:
        self.resources: training_pb2.FleetResources | None = None  # None until the fleet has told them
        self.num_attached = 0  # fleets so far
        self._attachment: Attachment | None = None
        self._orders = training_pb2.FleetOrders()

    @property
    def worker_slots(self) -> int | None:
        """Workers the cluster has room for; None without a fleet."""
        return None if self.resources is None else self.resources.worker_slots

    def attach(self) -> Attachment:
        """A new fleet takes the place of an older one. It gets orders once it has told its resources."""
        if self._attachment is not None:
            self._attachment.replaced = True
            self._attachment.close()
        self.resources = None
        self.num_attached += 1
        self._attachment = Attachment()
        return self._attachment

    def detach(self, attachment: Attachment) -> bool:
        """A fleet is gone; False if another had taken its place."""
        if attachment is not self._attachment:
            return False
        self._attachment = self.resources = None
        return True

    def is_current(self, attachment: Attachment) -> bool:
        """Whether what comes from it counts."""
        return attachment is self._attachment

    def told(self, resources: training_pb2.FleetResources) -> bool:
        """The fleet told its resources; True if these are its first, so that it waits for orders."""
        first = self.resources is None
        self.resources = resources
        return first

    def push(self, orders: training_pb2.FleetOrders, *, again: bool = False) -> None:
        """Send orders that differ from the last ones, or the same `again`."""
        if self._attachment is None or self.resources is None:
            return
        if again or orders != self._orders:
            self._orders = orders
            self._attachment.put(orders)

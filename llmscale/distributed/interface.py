"""Which network the ranks of a run talk over."""

from __future__ import annotations

import os
import socket

import psutil

from data_pipeline.base.errors import UserError
from llmscale.distributed.wire import is_loopback, plain

INTERFACE = "LLMSCALE_INTERFACE"
"""Variable with the network interface of a run, by its name or its address."""
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def listening_address(master: str) -> str:
    """Where rank 0 listens: on what LLMSCALE_INTERFACE names, else on loopback where MASTER_ADDR is that, else on all
    interfaces (the empty address).

    Raises:
        UserError: this machine has no such interface.
    """
    wanted = os.environ.get(INTERFACE, "")
    if not wanted:
        return "127.0.0.1" if master == "localhost" else master if is_loopback(master) else ""
    known = interface_addresses()
    for name, addresses in known.items():
        if wanted == name and addresses:
            return addresses[0]
        if wanted in addresses:
            return wanted
    if is_loopback(wanted):
        return wanted
    error = UserError(
        f"{INTERFACE} is '{wanted}', but this machine ({socket.gethostname()}) has"
        f" {', '.join(f'{name} ({addresses[0]})' for name, addresses in known.items() if addresses)}; name one of them"
    )
    error.everywhere = False
    raise error


def use_interface_of(address: str) -> None:
    """Let gloo, and with LLMSCALE_INTERFACE NCCL too, use the interface that has `address`, unless the user has said
    which: gloo's own choice is that of the host's name, which on many machines is loopback or another network."""
    name = next((name for name, addresses in interface_addresses().items() if address in addresses), None)
    if name is None and is_loopback(address):
        name = next(
            (name for name, addresses in interface_addresses().items() if any(map(is_loopback, addresses))), None
        )
    if name is None:
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    if os.environ.get(INTERFACE):
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def interface_addresses() -> dict[str, list[str]]:
    """The addresses of each interface that is up, IPv4 first."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return {
        name: [plain(entry.address) for family in _FAMILIES for entry in entries if entry.family == family]
        for name, entries in psutil.net_if_addrs().items()
        if name in up
    }

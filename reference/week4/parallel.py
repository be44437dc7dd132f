"""Data parallelism: several processes, each with all parameters, that share the batches of a step.

Every process computes the gradients of its own batches; `Group.total` adds them up, and all take the same
AdamW step on the same sum. Nothing else is exchanged, so the processes stay equal without being told.

    group = launch(2)       # before anything else: starts process 1, returns in both
    group.rank, group.size

On a CPU this uses the second core better than a BLAS with two threads: MLX runs everything but the products
on one thread. The processes meet on this machine's loopback address (MLX's "ring").
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass

import mlx.core as mx

from .gpt import Parameters


@dataclass(frozen=True)
class Group:
    """The processes of one run, numbered from 0."""

    rank: int = 0
    size: int = 1
    ring: mx.distributed.Group | None = None

    def total(self, values: Parameters) -> Parameters:
        """The sum over all processes, array by array; the same in each. float32 in, float32 out.

        They travel as one array: a message costs more than its bytes.
        """
        if self.ring is None:
            return values
        flat = mx.concatenate([value.reshape(-1) for value in values.values()])
        flat = mx.distributed.all_sum(flat, group=self.ring)
        result, at = {}, 0
        for name, value in values.items():
            result[name] = flat[at : at + value.size].reshape(value.shape)
            at += value.size
        return result


ALONE = Group()


def launch(size: int) -> Group:
    """Run this same command in `size` processes and return in each; they end with the first one."""
    if size == 1:
        return ALONE
    if "MLX_RANK" not in os.environ:
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as hosts:
            json.dump([[f"127.0.0.1:{port}"] for port in _free_ports(size)], hosts)
        atexit.register(os.unlink, hosts.name)
        os.environ["MLX_HOSTFILE"] = hosts.name
        for rank in range(1, size):
            process = subprocess.Popen(sys.orig_argv, env=os.environ | {"MLX_RANK": str(rank)})
            atexit.register(process.kill)
        os.environ["MLX_RANK"] = "0"
    ring = mx.distributed.init(strict=True, backend="ring")
    return Group(ring.rank(), ring.size(), ring)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on. All are held until the last is found, so that no two are the same."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports

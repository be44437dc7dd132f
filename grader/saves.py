"""Tells when files of a folder may have been saved: by the system's events, or by looking again and again.

It only wakes whoever waits on it. What was saved, and whether anything changed at all, is for them to find
out from the files: an editor may write, rename, truncate or touch.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

DEBOUNCE_MS = 200  # events are told at the latest after so long, also while more come
STEP_MS = 10  # and as soon as none came for so long
POLL_MS = 200
# File systems whose changes are made on another machine, or on the other side of a virtual one, and which
# send no events for those. A fuse file system may; looking costs little.
WITHOUT_EVENTS = frozenset(
    {"9p", "drvfs", "virtiofs", "vboxsf", "vmhgfs", "prl_fs"}  # Windows under a Linux, virtual machines
    | {"nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "afs", "afpfs", "webdav", "lustre", "ceph"}
)


def without_events(folder: Path) -> str:
    """The kind of file system that `folder` is on, if it is one that sends no events; else ""."""
    import psutil

    path = folder.resolve()
    kind, longest = "", -1
    with contextlib.suppress(OSError, psutil.Error):
        for mount in psutil.disk_partitions(all=True):
            point = Path(mount.mountpoint)
            if path.is_relative_to(point) and len(point.parts) >= longest:
                kind, longest = mount.fstype.lower(), len(point.parts)
    return kind if kind in WITHOUT_EVENTS or kind.startswith("fuse") else ""


class Saves:
    """Watches all below `folder`, until closed. Readable (fileno) when something may have been saved."""

    def __init__(self, folder: Path, *, poll: bool) -> None:
        self.folder = folder
        self.poll = poll
        self.fault = ""  # why it has stopped watching
        self.up = False  # whether it is known to watch by now
        self._paths: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._awake, self._wake = os.pipe()
        for fd in (self._awake, self._wake):
            os.set_blocking(fd, False)
        self._thread = threading.Thread(target=self._follow, name="saves", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        return self._awake

    def take(self) -> set[Path]:
        """The paths that events were about since the last time."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._awake, 4096):
                pass  # the bytes only wake; what they are about is in _paths
        with self._lock:
            paths, self._paths = self._paths, set()
        return {Path(p) for p in paths}

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2)
        if not self._thread.is_alive():
            os.close(self._awake)
            os.close(self._wake)

    def _follow(self) -> None:
        try:
            import watchfiles

            for changes in watchfiles.watch(
                self.folder,
                watch_filter=None,
                debounce=DEBOUNCE_MS,
                step=STEP_MS,
                stop_event=self._stop,
                rust_timeout=1000,
                yield_on_timeout=True,
                raise_interrupt=False,
                force_polling=self.poll or None,  # None: as WATCHFILES_FORCE_POLLING says
                poll_delay_ms=POLL_MS,
                ignore_permission_denied=True,
            ):
                self.up = True
                if changes:
                    with self._lock:
                        self._paths |= {path for _, path in changes}
                    self._tell()
        except Exception as error:  # the system's limit of watches, the folder gone, no such module
            self.fault = f"{type(error).__name__}: {error}".strip()
            self._tell()

    def _tell(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is awake already
            os.write(self._wake, b"x")

"""The speaking child: one process in which a tree's code runs a model and replies to prompts.

    python -P -m tinyllm.grader.speaker '<job as JSON>'

Requests come as JSON lines on one pipe; events, with the job's token, go as JSON lines to another (the other
ends are in speaking.py). What the tree's code prints goes to the process's output, never among the events.
SIGINT ends the reply that is being made; between replies it means nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyllm.kernels import blas

from . import catalog
from .child import Emitter, die_with_parent
from .clone import Clone
from .trees import Tree


def main(job: Mapping[str, Any]) -> None:
    """Load, then serve requests until their pipe is closed. Ends the process itself: a thread that the tree's
    code left running must not keep it alive."""
    die_with_parent(job["lifeline"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    os.environ["HF_HUB_OFFLINE"] = "1"  # the folder is complete: a look at the network would only take time
    blas.prepare()

    from .voice import Told, Voice  # MLX comes with it, so not before

    clone = Clone(Path(job["root"]))
    course = catalog.load(clone)
    engine = course.engine(job["engine"])
    overlays = {k: Path(v) for k, v in job["overlays"].items()}
    tree = Tree(job["solution"], clone.tree(job["solution"]), overlays)
    emit = Emitter(job["events"], job["token"])
    voice = Voice(clone, engine, tree, emit)
    tree.install()
    tree.kernels(course.kernels(course.day(d) for d in engine.days))
    try:
        voice.load(Path(job["model"]), job["config"], context=job["context"], seed=job["seed"])
        signal.signal(signal.SIGINT, voice.stop)
        with os.fdopen(job["requests"], "rb") as requests:
            for line in requests:
                try:
                    voice.reply(json.loads(line))
                except Told as told:
                    emit("fault", told.as_event())
    except Told as told:
        emit("fault", told.as_event())
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

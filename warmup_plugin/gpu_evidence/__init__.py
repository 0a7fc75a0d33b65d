# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's own ops on the GPU at hand: FlashInfer alone against this package, cold and warm.

``python -m warmup_plugin.gpu_evidence`` (or ``make gpu-evidence``) writes what it has measured as
JSON and as a section for ``docs/evidence.md``. It is a measurement, not a part of any start: no
engine imports this folder.

    __main__   the command: options, what is printed and written, the exit status
    run        the parent: children, the budget of seconds, the limit of one op
    spec       what a child is told
    child      a child: one way of starting, op after op
    ops        FlashInfer's ops as engines call them, chosen by compute capability
    timing     what serves, timed again in one process, the ways by turns
    verdict    rows in, laws and figures out; pure
    page       the section of the page; pure
    facts      the environment
"""

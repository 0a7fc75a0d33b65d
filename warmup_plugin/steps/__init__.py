# SPDX-License-Identifier: Apache-2.0
"""The work behind each of the nine steps, one file per stage; `kernel_warmup.py` is their order."""

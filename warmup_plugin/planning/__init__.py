# SPDX-License-Identifier: Apache-2.0
"""Who tunes which task, and one table from the results. No torch, no clock."""

# SPDX-License-Identifier: Apache-2.0
"""The process: signals, polling, threads, streams. Nothing here knows what a table is."""

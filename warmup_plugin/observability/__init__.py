# SPDX-License-Identifier: Apache-2.0
"""Reports, progress and metrics of a warm-up."""

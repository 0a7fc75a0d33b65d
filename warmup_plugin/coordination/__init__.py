# SPDX-License-Identifier: Apache-2.0
"""How the ranks of one session agree, wait and fail together."""

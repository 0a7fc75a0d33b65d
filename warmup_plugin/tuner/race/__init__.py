# SPDX-License-Identifier: Apache-2.0
"""How the candidates of one task are raced: the rule, and the rounds through FlashInfer."""

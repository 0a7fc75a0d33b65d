# SPDX-License-Identifier: Apache-2.0
"""Record and replay FlashInfer's tuning calls: the only package that imports flashinfer."""

# SPDX-License-Identifier: Apache-2.0
"""What is stored on disk, and what it means: tables, manifests, paths, locks."""

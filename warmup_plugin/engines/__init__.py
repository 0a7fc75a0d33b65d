# SPDX-License-Identifier: Apache-2.0
"""One adapter per engine, and the embedded engine for trying it without any."""

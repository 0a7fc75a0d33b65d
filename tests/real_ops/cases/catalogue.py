# SPDX-License-Identifier: Apache-2.0
"""All cases, by name."""

from __future__ import annotations

from tests.real_ops.cases import gemms, moes, others
from tests.real_ops.cases.case import Case

CASES: dict[str, Case] = {
    case.name: case for module in (gemms, moes, others) for case in module.CASES
}

"""A mesh whose nodes wrap packets for each other, and which is switched over while a stream flows.

Belongs here: what takes running operators and agents. Does not belong here: what wrapped packets meet
(tests/bpf/test_wire_overlay.py).
"""

from collections.abc import Iterator

import pytest

from controlplane.lab.flows import stream_through
from tests.integration import lab

pytestmark = [pytest.mark.kernel("TCX links"), pytest.mark.kernel("bpf_redirect_peer")]

"""Re-run the evidence: every claim comes out as the book reports it.

The scripts run once for the tests, ``tools/evidence`` and the book: what they measured and drew is kept in ``.cache/claims``
until a source file that they import changes.
"""

import pytest
from discovery import claim_names, evidence_of


@pytest.mark.parametrize("name", claim_names())
def test_claims_come_out_as_reported(name):
    claims = evidence_of(name)
    assert claims
    for claim in claims:
        assert claim["as_stated"], f"{claim['statement']}: expected {claim['expected']}, measured {claim['figures']}"

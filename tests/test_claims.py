"""Re-run the evidence: every claim comes out as the book reports it."""

import pytest
from discovery import TESTS, claim_names, load


@pytest.mark.parametrize("name", claim_names())
def test_claims_come_out_as_reported(name):
    claims = load(TESTS / "claims" / f"{name}.py").claims()
    assert claims
    for claim in claims:
        assert claim.as_stated, f"{claim.statement}: expected {claim.expected}, measured {dict(claim.figures)}"

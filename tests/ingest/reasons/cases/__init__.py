"""Damaged files by reason code: what `test_reasons.py` converts.

Tests are imported one by one, so this package is loaded by `conftest.py` and uses relative imports only.
"""

from . import build, codestream, content, contradiction, element, identity, image, pairs, raster, spacing, whole_file

CASES = (
    *whole_file.CASES,
    *identity.CASES,
    *image.CASES,
    *spacing.CASES,
    *raster.CASES,
    *element.CASES,
    *codestream.CASES,
    *content.CASES,
    *contradiction.CASES,
)
PAIRS = (*pairs.CASES, *contradiction.PAIRS)

__all__ = ["CASES", "PAIRS", "build"]

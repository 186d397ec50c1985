"""The report: complete, self-contained, and every number with its origin."""

import re

from teukenjax.planner.document import write_document
from teukenjax.planner.search import search


def test_the_report_is_one_file_that_says_how_its_numbers_were_got(teuken, tmp_path):
    out = tmp_path / "report.html"
    answer = search(teuken())
    write_document(answer, 4e12, out)
    page = out.read_text()
    assert page.count('<img src="data:image/png;base64,') == 2
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert f"{answer.tokens_per_s:,.0f}" in page
    assert "<b>predicted</b>" in page
    assert "measured on one H200" in page

"""The report: complete, self-contained, and every number with its origin."""

import re

from teukenjax.planner.document import write_document
from teukenjax.planner.figures import what_binds
from teukenjax.planner.predict import doubled
from teukenjax.planner.search import more_memory, search


def test_the_report_is_one_file_that_says_how_its_numbers_were_got(teuken, tmp_path):
    out = tmp_path / "report.html"
    answer = search(teuken())
    write_document(answer, 4e12, out)
    page = out.read_text()
    assert page.count('<img src="data:image/png;base64,') == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert f"{answer.tokens_per_s:,.0f}" in page
    assert "<b>predicted</b>" in page
    assert "of our own steps that ran" in page


def test_what_binds_follows_memory_and_bandwidth(teuken):
    question = teuken("h100-sxm", 64)
    rich = more_memory(doubled(question.hw, ("fast_gb_per_s", "network_gb_per_s"), 4.0), 1e12)
    slow = more_memory(doubled(question.hw, ("fast_gb_per_s", "network_gb_per_s"), 0.05), 1e12)
    small = more_memory(rich, 30e9 - rich.target.memory_bytes)
    found = [what_binds(search(question.on(hw=hw))) for hw in (rich, slow, small)]
    assert found == ["compute", "bandwidth", "memory"]

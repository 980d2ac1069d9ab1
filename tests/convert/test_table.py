"""The table of docs/convert.md is what the code says."""

from pathlib import Path

from llamax.convert import table


def test_docs_have_the_table_of_the_code():
  docs = (Path(__file__).parents[2] / 'docs/convert.md').read_text()
  assert table.table() in docs


def test_every_no_has_its_reason():
  nos = table.table().count(' - ')
  assert table.reasons().count('\n* ') + 1 == nos > 0
